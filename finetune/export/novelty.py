"""How unlike the images that a model knows an image is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from finetune.export.description import NoveltyKind
from finetune.models.heads import unit_length
from finetune.page.facts import ShownByFacts

NEIGHBOR = 10  # whose distance counts
_ARRAYS = {"energy": set(), "knn": {"bank"}, "mahalanobis": {"means", "whitening"}}


@dataclass(frozen=True, repr=False)
class Novelty(ShownByFacts):
    """A score: the higher, the less an image is like those of any class.

    Attributes:
        kind: ``energy`` of the logits (Liu et al. 2020, arXiv:2010.03759); ``knn``, the cosine distance to the 10th
            nearest training image (Sun et al. 2022, arXiv:2204.06507); or ``mahalanobis``, the squared distance to the
            mean of the nearest class (Lee et al. 2018, arXiv:1807.03888).
        arrays: float32; of ``knn`` the ``bank`` of unit vectors [m, num_features]; of ``mahalanobis`` the ``means``
            [k, num_features] after ``whitening`` [num_features, num_features]. None for the energy.
    """

    kind: NoveltyKind = "energy"
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def _facts(self) -> dict[str, Any]:
        return {"kind": self.kind, "arrays": tuple(self.arrays) or None}

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: an unknown kind, or other arrays than it has.
        """
        if self.kind not in get_args(NoveltyKind):
            raise ValueError(f"novelty: one of {', '.join(get_args(NoveltyKind))}; received {self.kind!r}")
        if self.arrays.keys() != _ARRAYS[self.kind] or any(array.ndim != 2 for array in self.arrays.values()):
            raise ValueError(f"novelty: {self.kind} with {', '.join(self.arrays) or 'no arrays'}")
        widths = {array.shape[1] for array in self.arrays.values()}
        if self.kind == "mahalanobis":
            widths.add(self.arrays["whitening"].shape[0])
        if len(widths) > 1:
            raise ValueError(f"novelty: {self.kind} with arrays of {' and '.join(map(str, sorted(widths)))} features")

    @property
    def num_features(self) -> int | None:
        """Of the features that it reads; None where it reads none."""
        return next((int(array.shape[1]) for array in self.arrays.values()), None)

    @property
    def reads_features(self) -> bool:
        return self.kind != "energy"

    def score(self, logits: Any, features: Any = None) -> jax.Array:
        """float32 [n].

        Args:
            logits: [n, num_classes], before calibration.
            features: [n, num_features], that the head reads; None where the score does not read them.
        """
        if self.kind == "energy":
            return energy(logits)
        features = jnp.asarray(features, jnp.float32)
        if self.kind == "knn":
            bank = jnp.asarray(self.arrays["bank"])
            nearest, _ = jax.lax.top_k(unit_length(features) @ bank.T, min(NEIGHBOR, len(bank)))
            return 1 - nearest[:, -1]
        means, whitened = jnp.asarray(self.arrays["means"]), features @ jnp.asarray(self.arrays["whitening"])
        center = means.mean(axis=0)  # near zero, differences lose no digits
        means, whitened = means - center, whitened - center
        squares = (whitened**2).sum(1)[:, None] + (means**2).sum(1) - 2 * whitened @ means.T
        return squares.min(axis=1)


def energy(logits: Any) -> jax.Array:
    """[n]: minus the logarithm of the sum of the exponentials."""
    return -jax.nn.logsumexp(jnp.asarray(logits), axis=-1)
