"""What is wrong with labeled images, one function for each kind of finding; all of them give JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from finetune.data.duplicates import duplicates_across
from finetune.data.labeled_images import Split, concatenate, count_classes
from finetune.data.splits import Splits
from finetune.evaluation.label_errors import find_label_errors
from finetune.evaluation.outliers import LIMIT, NEIGHBORS, outlier_threshold
from finetune.evaluation.per_class import confusion_matrix
from finetune.evaluation.statistics import wilson_interval

CLEAR = 100.0  # times as probable as the given label, for a suggestion that a corrected table follows
TRUSTED = 0.7  # accuracy of the probe below which a reader is warned
_FEW_TO_LEARN = 10  # training images of a class
_TO_SHOW = 0.9  # accuracy that the test images of a class should be able to show
_PAIRS = 20  # of classes that overlap most
_EXAMPLES = 4  # images of each of these


@dataclass(frozen=True)
class Evidence:
    """Images of all splits, and what was computed of them.

    Attributes:
        groups: int [n], equal for duplicates.
        distances: float32 [n], to a near neighbor.
        probabilities: float32 [n, num_classes], out of fold; NaN for images that are not judged; None without a probe.
    """

    splits: Splits
    groups: np.ndarray
    distances: np.ndarray
    probabilities: np.ndarray | None

    @cached_property
    def images(self) -> Split:
        return concatenate(list(self.splits.named().values()))

    @cached_property
    def judged(self) -> np.ndarray:
        """Indices of the images that have probabilities."""
        return np.zeros(0, int) if self.probabilities is None else np.flatnonzero(~np.isnan(self.probabilities[:, 0]))

    @cached_property
    def places(self) -> list[tuple[str, int]]:
        """(split, index in it) of each image."""
        return [(name, index) for name, split in self.splits.named().items() for index in range(len(split))]

    def describe(self, image: int) -> dict[str, Any]:
        """An image as findings name it; ``id`` is its index among all."""
        split, index = self.places[image]
        name = self.splits.named()[split].name(index)
        return {"id": int(image), "split": split, "index": index, "image": name, "label": self.label(image)}

    def label(self, image: int) -> str:
        """The name of an image's class; of several, joined by commas."""
        value, names = self.images.labels[image], self.splits.class_names
        return ", ".join(names[i] for i in np.flatnonzero(value)) if self.images.multi_label else names[value]


def count_findings(result: Mapping[str, Any]) -> dict[str, int]:
    """How many there are of each kind in what the doctor says, in words for a table."""
    errors = result["label_errors"]["images"]
    return {
        "likely label errors": len(errors),
        "of these, clear ones": sum(error["clear"] for error in errors),
        "groups of duplicates with different labels": len(result["conflicts"]),
        "outliers": len(result["outliers"]["images"]),
        "images that are in an earlier split, too": len(result["leakage"]["pairs"]),
        "classes with few images": len(result["small_classes"]),
    }


def probe_accuracy(evidence: Evidence) -> dict[str, Any] | None:
    """How often the probe gives an image's label, with Wilson's interval: how far to trust what it says.

    ``weak`` is true below :data:`TRUSTED`.
    """
    if evidence.probabilities is None:
        return None
    judged = evidence.judged
    labels, count = evidence.images.labels[judged], len(judged)
    correct = int((evidence.probabilities[judged].argmax(1) == labels).sum())
    return {
        "images": count,
        "accuracy": correct / count,
        "interval": list(wilson_interval(correct, count)),
        "most_frequent_class": float(np.bincount(labels).max() / count),
        "weak": correct / count < TRUSTED,
    }


def label_errors(evidence: Evidence) -> dict[str, Any]:
    """Likely label errors, the likeliest first, and the share of wrong labels that they follow from."""
    if evidence.probabilities is None:
        return {"estimated_share": None, "images": []}
    judged, names = evidence.judged, evidence.splits.class_names
    p, labels = evidence.probabilities[judged], evidence.images.labels[judged]
    errors = find_label_errors(p, labels)
    images = []
    for row, suggested, score in zip(errors.indices, errors.suggested, errors.scores, strict=True):
        own, other = float(p[row, labels[row]]), float(p[row, suggested])
        images.append(
            {
                **evidence.describe(judged[row]),
                "suggested": names[suggested],
                "probability": other,
                "label_probability": own,
                "score": float(score),
                "clear": other >= CLEAR * own,
            }
        )
    return {"estimated_share": errors.noise, "images": images}


def conflicting_duplicates(evidence: Evidence) -> list[dict[str, Any]]:
    """Groups of duplicates with different labels: first those of equal pixels, then of near duplicates.

    The suggested label is that of most of a group's images, and among equals the one that the probe finds the most
    probable; None for images with several labels.
    """
    stats = evidence.images.stats
    assert stats is not None
    pixels = np.unique(stats.pixel_hash, return_inverse=True)[1]
    copies = [members for members in _groups_of_several(pixels) if _disagree(evidence, members)]
    near = []
    for members in _groups_of_several(evidence.groups):
        # What copies disagree on is told of them alone.
        voted = {_vote(evidence, members[pixels[members] == pixel]) for pixel in np.unique(pixels[members])}
        if len(voted) > 1:
            near.append(members)
    return [
        {
            "exact": exact,
            "suggested": None if evidence.images.multi_label else _vote(evidence, members),
            "images": [evidence.describe(member) for member in members],
        }
        for exact, groups in ((True, copies), (False, near))
        for members in groups
    ]


def _disagree(evidence: Evidence, members: np.ndarray) -> bool:
    labels = evidence.images.labels[members]
    return not bool((labels == labels[0]).all())


def _groups_of_several(groups: np.ndarray) -> Iterator[np.ndarray]:
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    yield from (members for members in np.split(order, starts) if len(members) > 1)


def _vote(evidence: Evidence, members: np.ndarray) -> str:
    """The label of most members; of images with several labels, the first's."""
    if evidence.images.multi_label:
        return evidence.label(members[0])
    names = evidence.splits.class_names
    votes = np.bincount(evidence.images.labels[members], minlength=len(names)).astype(float)
    if evidence.probabilities is not None:
        p = evidence.probabilities[members]
        votes += np.nan_to_num(p).sum(0) / (2 * len(members))  # less than a vote
    return names[int(votes.argmax())]


def outliers(evidence: Evidence) -> dict[str, Any]:
    """Images far from all others, the farthest first."""
    threshold = outlier_threshold(evidence.distances)
    order = np.argsort(-evidence.distances, kind="stable")
    images = [
        {**evidence.describe(image), "distance": float(evidence.distances[image])}
        for image in order[evidence.distances[order] > threshold]
    ]
    rule = f"Distance to the {NEIGHBORS}th nearest image above the median + {LIMIT:g} x 1.4826 x MAD of all distances"
    return {"rule": rule, "threshold": threshold, "images": images}


def class_overlap(evidence: Evidence) -> list[dict[str, Any]]:
    """The pairs of classes that the probe confuses most, as a share of the images of both."""
    if evidence.probabilities is None:
        return []
    judged, names = evidence.judged, evidence.splits.class_names
    p, labels = evidence.probabilities[judged], evidence.images.labels[judged]
    size = len(names)
    confusion = confusion_matrix(p.argmax(1), labels, np.arange(size))
    counts = confusion.sum(1)
    first, second = np.triu_indices(size, 1)
    both = confusion[first, second] + confusion[second, first]
    share = both / np.maximum(counts[first] + counts[second], 1)
    pairs = []
    for k in np.argsort(-share, kind="stable")[:_PAIRS]:
        if not both[k]:
            break
        a, b = int(first[k]), int(second[k])
        of_pair = np.flatnonzero((labels == a) | (labels == b))
        hardest = of_pair[np.argsort(-np.minimum(p[of_pair, a], p[of_pair, b]), kind="stable")[:_EXAMPLES]]
        pairs.append(
            {
                "classes": [names[a], names[b]],
                "first_as_second": int(confusion[a, b]),
                "second_as_first": int(confusion[b, a]),
                "images": int(counts[a] + counts[b]),
                "share": float(share[k]),
                "between": [evidence.describe(judged[row]) for row in hardest],
            }
        )
    return pairs


def leakage(evidence: Evidence) -> dict[str, Any]:
    """Images of a split that are also in an earlier one."""
    starts = dict(zip(evidence.splits.named(), _starts(evidence.splits.named()), strict=True))
    pairs = [
        {
            "exact": duplicate.exact,
            "images": [
                evidence.describe(starts[duplicate.split] + duplicate.index),
                evidence.describe(starts[duplicate.other_split] + duplicate.other_index),
            ],
        }
        for duplicate in duplicates_across(evidence.splits.named())
    ]
    exact = sum(bool(pair["exact"]) for pair in pairs)
    return {"exact": exact, "near": len(pairs) - exact, "pairs": pairs}


def _starts(splits: Mapping[str, Split]) -> list[int]:
    return np.cumsum([0, *(len(split) for split in splits.values())])[:-1].tolist()


def small_classes(splits: Splits) -> list[dict[str, Any]]:
    """Classes with too few images to learn, to choose a model on, or to say anything of their accuracy."""
    named = splits.named()
    counts = {name: count_classes(split.labels, len(splits.class_names)) for name, split in named.items()}
    found = []
    for index, name in enumerate(splits.class_names):
        of_class = {split: int(values[index]) for split, values in counts.items()}
        if problems := _problems(of_class):
            found.append({"class": name, "images": of_class, "problems": problems})
    return sorted(found, key=lambda entry: entry["images"]["train"])


def _problems(counts: Mapping[str, int]) -> list[str]:
    problems = []
    if counts["train"] < _FEW_TO_LEARN:
        problems.append(f"few to learn from: {_images(counts['train'], 'training')}")
    if counts.get("validation") == 0:
        problems.append("no validation image: the choice of a model does not see it")
    test = counts["test"]
    least = wilson_interval(test, test)[0] if test else 0.0
    if least < _TO_SHOW:
        were = f"were all of them right, its accuracy would be known to be above {least:.2f} only"
        problems.append(f"{_images(test, 'test')}: {were if test else 'its accuracy cannot be measured'}")
    return problems


def _images(count: int, kind: str) -> str:
    return f"{count} {kind} image{'' if count == 1 else 's'}"
