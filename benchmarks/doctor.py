"""Does the data doctor find wrong labels? 5% of the labels of 5,000 CIFAR-10 photographs are flipped at random.

    python -m benchmarks.doctor   # table, and benchmarks/results/doctor.json

Out-of-fold probes on MobileNetV2's features, as in ``finetune doctor``. Recall is the share of the flipped labels among
the 5% of the images that are named first; cleanlab ranks by the same probabilities where it is installed. A second
figure is the share of right labels before and after the clear suggestions, which ``--write`` follows. Outliers: how
many of 20 pictures of another kind, put among the photographs, are named. Data and MobileNetV2 are found in ../shared,
or where the options say.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import finetune
from benchmarks.mobilenet_probe import SIZE, features_of, parse_folders, photographs
from finetune.data.duplicates import group_duplicates
from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split
from finetune.data.stratify import grouped_folds
from finetune.evaluation.label_errors import find_label_errors
from finetune.evaluation.outliers import neighbor_distances, outlier_threshold
from finetune.report.doctor import FOLDS, out_of_fold_probabilities
from finetune.report.findings import CLEAR

COUNT, CLASSES, SHARE, SEEDS = 5000, 10, 0.05, range(9)


def main() -> None:
    args = parse_folders(str(__doc__), "doctor")
    if find_spec("cleanlab") is None:
        print("cleanlab is not installed: its figures are left out")
    backbone = finetune.load_backbone(args.mobilenetv2, image_size=SIZE)
    images, labels = photographs(args.cifar10, "train", backbone.image_spec, COUNT)
    x = features_of(backbone, images)
    groups = group_duplicates(scan_images(Split(images, labels)))
    rows = [with_flips(x, labels, groups, seed) for seed in SEEDS]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    results = {
        "images": COUNT,
        "size": SIZE,
        "flipped": SHARE,
        "cleanlab": version("cleanlab") if find_spec("cleanlab") else None,
        "mean": means,
        "seeds": rows,
        "labels_as_they_are": unflipped(x, labels, groups),
        "outliers": strangers(backbone, x, args.fashion_mnist),
    }
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def with_flips(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    flipped = rng.choice(len(labels), int(SHARE * len(labels)), replace=False)
    given = labels.copy()
    given[flipped] = (given[flipped] + rng.integers(1, CLASSES, len(flipped))) % CLASSES
    p, errors, corrected = corrections(x, given, groups)

    def recall(order: np.ndarray) -> float:
        return float(np.isin(flipped, order[: len(flipped)]).mean())

    return {
        "probe_accuracy": float((p.argmax(1) == labels).mean()),
        "recall": recall(errors.indices),
        "recall_of_all_named": float(np.isin(flipped, errors.indices).mean()),
        "named": len(errors.indices) / len(labels),
        **{f"cleanlab_{name}": recall(order) for name, order in cleanlab_orders(p, given).items()},
        "right_labels_before": float((given == labels).mean()),
        "right_labels_after": float((corrected == labels).mean()),
    }


def unflipped(x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """What the doctor would change of the labels that the photographs come with, few of which are wrong."""
    _, errors, corrected = corrections(x, labels, groups)
    return {"named": len(errors.indices) / len(labels), "changed": float((corrected != labels).mean())}


def corrections(x: np.ndarray, given: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, Any, np.ndarray]:
    """Probabilities, likely label errors, and the labels after the clear suggestions."""
    p = out_of_fold_probabilities(x, given, CLASSES, grouped_folds(given, groups, FOLDS, 0))
    assert p is not None
    errors = find_label_errors(p, given)
    own, other = p[errors.indices, given[errors.indices]], p[errors.indices, errors.suggested]
    clear = other >= CLEAR * own
    corrected = given.copy()
    corrected[errors.indices[clear]] = errors.suggested[clear]
    return p, errors, corrected


def cleanlab_orders(p: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The images in the order of each of cleanlab's scores, and of its default list of issues; empty without it."""
    if find_spec("cleanlab") is None:
        return {}
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    methods = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
    orders = {
        method: np.argsort(get_label_quality_scores(labels, p, method=method), kind="stable") for method in methods
    }
    issues = find_label_issues(labels, p, return_indices_ranked_by="self_confidence", n_jobs=1)
    return {**orders, "find_label_issues": issues}


def strangers(backbone: finetune.Backbone, x: np.ndarray, fashion_mnist: Path) -> dict[str, int]:
    """Ten clothes, five pictures of noise and five of one grey each: how many are named, and how many photographs."""
    clothes, _ = photographs(fashion_mnist, "train", backbone.image_spec, 10)
    shape = backbone.image_spec.shape
    noise = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    greys = np.stack([np.full(shape, value, np.uint8) for value in (0, 60, 128, 200, 255)])
    distances = neighbor_distances(np.concatenate([x, features_of(backbone, np.concatenate([clothes, noise, greys]))]))
    named = distances > outlier_threshold(distances)
    first = np.argsort(-distances)[:10]
    return {
        "strangers": int(named[len(x) :].sum()),
        "of": len(named) - len(x),
        "photographs": int(named[: len(x)].sum()),
        "strangers_among_the_first_ten": int((first >= len(x)).sum()),
    }


if __name__ == "__main__":
    main()
