"""How sure a model may be, as its validation images showed: calibrated probabilities, prediction sets, "unknown".

Prediction sets are split-conformal (Vovk et al. 2005; Angelopoulos & Bates 2021, arXiv:2107.07511): for images like the
validation images, they hold the true class at least as often as asked for, on average over the choice of those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from finetune.export.description import ConfidenceDescription, SetKind, explain
from finetune.export.novelty import Novelty
from finetune.page.facts import ShownByFacts

SET_KINDS: tuple[SetKind, ...] = get_args(SetKind)
KNOWN_SHARE = 0.95  # of the validation images, which are not called unknown
_CERTAINTY = 0.9  # of the error of what is accepted
_PENALTY, _FREE_RANKS = 0.01, 5  # of RAPS, for each class beyond so many


@dataclass(frozen=True, repr=False)
class Confidence(ShownByFacts):
    """What the validation images say about a model's logits.

    Attributes:
        scale: float32 [1] or [num_classes], what logits are multiplied with; and bias of the same shape, added then.
        scores: float32 [n] for each kind of sets: how unusual the true class of each validation image is, ascending.
            Empty where images have several labels.
        novelties: float32 [n] of the validation images, ascending, by the score of ``novelty``.
        certainties: float32 [n], the probability of the answer for each validation image; and right, bool [n], whether
            it was right. Empty where images have several labels.
        thresholds: float32 [num_classes], the probabilities from which on an image is of a class, where images have
            several labels; else empty.
    """

    scale: np.ndarray
    bias: np.ndarray
    scores: Mapping[str, np.ndarray]
    novelties: np.ndarray
    certainties: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    right: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    thresholds: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    novelty: Novelty = field(default_factory=Novelty)

    def _facts(self) -> dict[str, Any]:
        return {
            "validation_images": len(self.novelties),
            "calibration": "temperature" if self.scale.size == 1 else "vector",
            "unknown": self.novelty.kind,
        }

    def calibrate(self, logits: Any) -> Any:
        """Calibrated logits of the same shape; of NumPy or JAX."""
        return logits * self.scale + self.bias

    def threshold(self, coverage: float, kind: SetKind = "lac") -> float:
        """What the score of a class in a set is at most; infinite where there are too few validation images."""
        rank, count = self._rank(coverage, kind)
        return float(self.scores[kind][rank - 1]) if rank <= count else math.inf

    def _rank(self, coverage: float, kind: SetKind) -> tuple[int, int]:
        """Which of the scores, in ascending order, is the threshold; and how many there are."""
        count = len(self.scores[kind])
        return math.ceil(round((count + 1) * coverage, 9)), count

    def sets(self, probabilities: np.ndarray, coverage: float, kind: SetKind = "lac") -> np.ndarray:
        """bool [n, num_classes]: the classes in each set. It may be empty: no class is as likely as true ones are.

        Args:
            probabilities: calibrated ones, [n, num_classes].
            coverage: the share of images whose true class is in their set, in (0, 1).
            kind: ``lac``, the smallest sets on average (Sadinle et al. 2019, arXiv:1609.00451); ``aps``, which grow
                with the difficulty of the image (Romano et al. 2020, arXiv:2006.02544, without randomization);
                ``raps``, the same with fewer unlikely classes (Angelopoulos et al. 2021, arXiv:2009.14193).
        """
        return set_scores(probabilities, kind) <= self.threshold(coverage, kind)

    def coverage_range(self, coverage: float, kind: SetKind = "lac") -> tuple[float, float]:
        """Between what the coverage of this very model is with 90% certainty: it varies with the validation images."""
        from scipy.stats import beta

        rank, count = self._rank(coverage, kind)
        if rank > count:
            return 1.0, 1.0
        low, high = beta.ppf([0.05, 0.95], rank, count + 1 - rank)
        return float(low), float(high)

    @property
    def novelty_threshold(self) -> float:
        """Images above it are called unknown."""
        return float(np.quantile(self.novelties, KNOWN_SHARE, method="higher"))

    def acceptance_threshold(self, max_error: float) -> float:
        """The least certainty with which answers are wrong in at most a share ``max_error`` of the cases.

        That holds with 90% certainty for images like the validation images (Geifman & El-Yaniv 2017, arXiv:1705.08500,
        algorithm 1, with the exact binomial bound). Infinite where no threshold can promise it.
        """
        from scipy.stats import beta

        order = np.argsort(-self.certainties, kind="stable")
        wrong, certainties = np.cumsum(~self.right[order]), self.certainties[order]
        low, high, found = 0, len(order), math.inf  # of images accepted
        tries = max(1, math.ceil(math.log2(len(order) + 1)))
        for _ in range(tries):
            middle = (low + high + 1) // 2
            if middle == 0:
                break
            threshold = certainties[middle - 1]
            accepted = int((certainties >= threshold).sum())
            errors = int(wrong[accepted - 1])
            bound = 1.0 if errors == accepted else beta.isf((1 - _CERTAINTY) / tries, errors + 1, accepted - errors)
            if bound <= max_error:
                low, found = middle, float(threshold)
            else:
                high = middle - 1
        return found

    def to_json(self) -> dict[str, Any]:
        scores = {kind: values.tolist() for kind, values in self.scores.items()}
        return {
            "scale": self.scale.tolist(),
            "bias": self.bias.tolist(),
            "scores": scores,
            "novelty": self.novelty.kind,
            "novelties": self.novelties.tolist(),
            "certainties": self.certainties.tolist(),
            "right": self.right.tolist(),
            "thresholds": self.thresholds.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_classes: int, arrays: Mapping[str, np.ndarray]) -> Confidence:
        """
        Args:
            arrays: of the novelty, which are not in the JSON.

        Raises:
            ValueError: not what :meth:`to_json` gives.
        """
        try:
            described = ConfidenceDescription.model_validate(dict(data))
        except ValidationError as error:
            raise ValueError(explain(ConfidenceDescription, error, "confidence")) from None
        described.check(num_classes)
        names = ("scale", "bias", "novelties", "certainties", "thresholds")
        numbers = {name: np.asarray(getattr(described, name), np.float32) for name in names}
        scores: dict[str, np.ndarray] = {
            kind: np.asarray(values, np.float32) for kind, values in described.scores.items()
        }
        novelty = Novelty(described.novelty, arrays)
        return cls(scores=scores, right=np.asarray(described.right, bool), novelty=novelty, **numbers)


def set_scores(probabilities: np.ndarray, kind: SetKind) -> np.ndarray:
    """How unusual each class would be, [n, num_classes]: those of a set are the least unusual ones."""
    if kind == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.cumsum(np.take_along_axis(probabilities, order, 1), axis=1)
    if kind == "raps":
        ordered = ordered + _PENALTY * np.maximum(np.arange(1, ordered.shape[1] + 1) - _FREE_RANKS, 0)
    scores = np.empty_like(ordered)
    np.put_along_axis(scores, order, ordered, 1)
    return scores
