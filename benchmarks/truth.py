"""Do sets cover what they promise, and is what is unknown told? On CIFAR-10, and digits against Fashion-MNIST.

    python -m benchmarks.truth   # table, and benchmarks/results/truth.json

Coverage: a linear probe on MobileNetV2's features of 2,000 photographs; of 4,000 others, half calibrate and 2,000 are
covered, in 20 random splits; the sets are compared with MAPIE's on the same probabilities where that is installed.
Selective: the answers accepted for an error of at most 0.1, in the same splits. Unknown: `tiny-clip` with a probe on
scikit-learn's digits, whose test images are told from photographs of clothes by each score. Data and MobileNetV2 are
found in ../shared, or where the options say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

import finetune
from benchmarks.mobilenet_probe import SIZE, features_of, parse_folders, photographs
from finetune.evaluation.calibration import describe_calibration, fit_confidence
from finetune.evaluation.novelty import fit_novelty, score_all
from finetune.evaluation.verdict import probabilities
from finetune.export.confidence import SET_KINDS
from finetune.export.novelty import NoveltyKind
from finetune.training.heads.linear_probe import fit_linear_probe

COVERAGE, MAX_ERROR, SPLITS, TRAIN, HELD_OUT = 0.9, 0.1, 20, 2000, 2000


def main() -> None:
    args = parse_folders(str(__doc__), "truth")
    results = {"sets": sets(args.mobilenetv2, args.cifar10), "unknown": unknown(args.fashion_mnist)}
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def sets(mobilenetv2: Path, cifar10: Path) -> dict[str, Any]:
    backbone = finetune.load_backbone(mobilenetv2, image_size=SIZE)
    images, labels = photographs(cifar10, "train", backbone.image_spec, TRAIN + 2 * HELD_OUT)
    x = features_of(backbone, images)
    x /= x[:TRAIN].std()
    fitted = fit_linear_probe(x[:TRAIN], labels[:TRAIN], 10, l2=100.0)
    logits = x[TRAIN:] @ np.asarray(fitted.kernel) + np.asarray(fitted.bias)
    labels = labels[TRAIN:]
    rows: dict[str, list[float]] = {}
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(labels))
        validation, test = order[:HELD_OUT], order[HELD_OUT:]
        confidence = fit_confidence(logits[validation], labels[validation])
        shares = probabilities(confidence.calibrate(logits[test]), labels[test])
        for kind in SET_KINDS:
            members = confidence.sets(shares, COVERAGE, kind)
            rows.setdefault(f"coverage, {kind}", []).append(members[np.arange(len(test)), labels[test]].mean())
            rows.setdefault(f"classes in a set, {kind}", []).append(members.sum(1).mean())
        on_validation = probabilities(confidence.calibrate(logits[validation]), labels[validation])
        theirs = mapie_sets(on_validation, labels[validation], shares)
        if theirs is not None:
            different = (theirs != confidence.sets(shares, COVERAGE, "lac")).any(1).mean()
            rows.setdefault("sets that differ from MAPIE's, lac", []).append(different)
        accepted = shares.max(1) >= confidence.acceptance_threshold(MAX_ERROR)
        rows.setdefault("accepted", []).append(accepted.mean())
        rows.setdefault("error of the accepted", []).append((shares.argmax(1) != labels[test])[accepted].mean())
        facts = describe_calibration(confidence, logits[test], labels[test])
        for name in ("expected_calibration_error_before", "expected_calibration_error_after"):
            rows.setdefault(name, []).append(facts[name])
    accuracy = float((logits.argmax(1) == labels).mean())
    return {"accuracy": accuracy, **{name: float(np.mean(values)) for name, values in rows.items()}}


def mapie_sets(on_validation: np.ndarray, labels: np.ndarray, shares: np.ndarray) -> np.ndarray | None:
    """MAPIE's LAC sets, bool [n, num_classes]; None where it is not installed."""
    try:
        from mapie.classification import SplitConformalClassifier
    except ImportError:
        return None
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        """Its inputs are the probabilities."""

        classes_ = np.arange(shares.shape[1])

        def fit(self, x: np.ndarray, y: np.ndarray) -> Given:
            return self

        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return x

        def predict(self, x: np.ndarray) -> np.ndarray:
            return x.argmax(1)

        def __sklearn_is_fitted__(self) -> bool:
            return True

    sets = SplitConformalClassifier(Given(), confidence_level=COVERAGE, conformity_score="lac", prefit=True)
    sets.conformalize(on_validation, labels)
    return np.asarray(sets.predict_set(shares)[1][:, :, 0])


def unknown(fashion_mnist: Path) -> dict[str, float]:
    """Area under the ROC curve of each score of digits and of clothes."""
    from sklearn.datasets import load_digits

    backbone = finetune.load_backbone("builtin:tiny-clip")
    digits = load_digits()
    pixels = [Image.fromarray((image * 255 / 16).astype(np.uint8)).convert("RGB") for image in digits.images]
    known = np.stack([backbone.image_spec.to_uint8(image) for image in pixels])
    clothes, _ = photographs(fashion_mnist, "train", backbone.image_spec, 1000)
    x = features_of(backbone, np.concatenate([known, clothes]))
    fitted = fit_linear_probe(x[:800], digits.target[:800], 10)
    logits = x @ np.asarray(fitted.kernel) + np.asarray(fitted.bias)
    is_clothes = np.arange(len(x)) >= len(known)
    areas = {}
    for kind in get_args(NoveltyKind):
        novelty = fit_novelty(kind, x[:800], digits.target[:800])
        areas[kind] = float(roc_auc_score(is_clothes[800:], score_all(novelty, logits, x)[800:]))
    return areas


if __name__ == "__main__":
    main()
