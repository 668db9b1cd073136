"""How sure a model may be, as its validation images showed: calibrated probabilities, prediction sets, "unknown".

Prediction sets are split-conformal (Vovk et al. 2005; Angelopoulos & Bates 2021, arXiv:2107.07511): for images like the
validation images, they hold the true class at least as often as asked for, on average over the choice of those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

SetKind = Literal["lac", "aps", "raps"]
SET_KINDS: tuple[SetKind, ...] = get_args(SetKind)
KNOWN_SHARE = 0.95  # of the validation images, which are not called unknown
_PENALTY, _FREE_RANKS = 0.01, 5  # of RAPS, for each class beyond so many


@dataclass(frozen=True)
class Confidence:
    """What the validation images say about a model's logits.

    Attributes:
        scale: float32 [1] or [num_classes], what logits are multiplied with; and bias of the same shape, added then.
        scores: float32 [n] for each kind of sets: how unusual the true class of each validation image is, ascending.
            Empty where images have several labels.
        energies: float32 [n] of the validation images, ascending.
    """

    scale: np.ndarray
    bias: np.ndarray
    scores: Mapping[str, np.ndarray]
    energies: np.ndarray

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
    def energy_threshold(self) -> float:
        """Images above it are called unknown."""
        return float(np.quantile(self.energies, KNOWN_SHARE, method="higher"))

    def to_json(self) -> dict[str, Any]:
        scores = {kind: values.tolist() for kind, values in self.scores.items()}
        return {
            "scale": self.scale.tolist(),
            "bias": self.bias.tolist(),
            "scores": scores,
            "energies": self.energies.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], num_classes: int) -> Confidence:
        """
        Raises:
            ValueError, KeyError, TypeError: not what :meth:`to_json` gives.
        """
        scale, bias, energies = (np.asarray(data[key], np.float32) for key in ("scale", "bias", "energies"))
        scores = {kind: np.asarray(values, np.float32) for kind, values in data["scores"].items()}
        if scale.shape not in ((1,), (num_classes,)) or bias.shape != scale.shape:
            raise ValueError(f"confidence: scale {scale.shape}, bias {bias.shape} for {num_classes} classes")
        if not scores.keys() <= set(SET_KINDS) or any(values.ndim != 1 for values in (energies, *scores.values())):
            raise ValueError("confidence: scores")
        return cls(scale, bias, scores, energies)


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


def energy(logits: np.ndarray) -> np.ndarray:
    """[n]; the higher, the less the image looks like those of any class (Liu et al. 2020, arXiv:2010.03759)."""
    from scipy.special import logsumexp

    return -np.asarray(logsumexp(logits, axis=1))
