"""Whether mirrored images are still images of their class, as those of letters and of left hands are not."""

from __future__ import annotations

import numpy as np

from finetune.data.labeled_images import Split
from finetune.models.classifier import Classifier
from finetune.recipe.augment import Augment
from finetune.run.features import RunFeatures, Views
from finetune.training.heads.linear_probe import fit_linear_probe
from finetune.trees import Variables

_IMAGES = 500  # that this is looked up on; a quarter of them is told apart
_HELD_OUT = 4
_WORSE = 0.05  # accuracy that mirroring may cost


def may_be_mirrored(
    features: RunFeatures, classifier: Classifier, variables: Variables, train: Split, num_classes: int, seed: int
) -> bool:
    """Whether a linear probe tells mirrored images of a backbone about as well as images.

    Args:
        train: training images, of which the probe takes three in four and the test the rest, 500 in all at most.
        seed: of which are which.
    """
    order = np.random.default_rng(seed).permutation(len(train))[:_IMAGES]
    told, fitted = np.split(order, [len(order) // _HELD_OUT])
    if not len(told):
        return True
    mirror = Views(1, Augment(hflip=1.0), seed)

    def inputs(rows: np.ndarray, views: Views | None = None) -> np.ndarray:
        return features.head_inputs(classifier, variables, train.take(rows), "mirroring", views, tell=False)

    probe = fit_linear_probe(inputs(fitted), train.labels[fitted], num_classes, l2=1.0, standardize=True)
    plain, mirrored = (
        _accuracy(inputs(told, views) @ np.asarray(probe.kernel) + np.asarray(probe.bias), train.labels[told])
        for views in (None, mirror)
    )
    noise = 2 * (plain * (1 - plain) / len(told)) ** 0.5
    return mirrored >= plain - max(_WORSE, noise)


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Of single labels, or of the decisions about each of several."""
    if labels.ndim == 2:
        return float(((logits > 0) == (labels > 0.5)).mean())
    return float((logits.argmax(1) == labels).mean())
