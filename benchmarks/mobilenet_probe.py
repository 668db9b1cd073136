"""Do transferred weights and running statistics carry knowledge? A linear probe on CIFAR-10, pretrained and random.

    python -m benchmarks.mobilenet_probe FOLDER CIFAR10   # table, and benchmarks/results/mobilenet_probe.json

FOLDER is a checkpoint with BatchNorm (MobileNetV2 in timm's layout), CIFAR10 a folder with the dataset's parquet files.
2,000 training and 2,000 test photographs, brought to 96 pixels. The random network has the running statistics of the
training photographs, so that its features are alive too; both probes are regularized alike.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import finetune
from benchmarks.step import ROOT
from finetune.evaluation.steps import make_feature_step
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier
from finetune.training.heads.linear_probe import fit_linear_probe

SIZE, COUNT, BATCH = 96, 2000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mobilenet_probe.json")
    args = parser.parse_args()
    backbone = finetune.load_backbone(args.checkpoint, image_size=SIZE)
    data = {split: photographs(args.cifar10, split, backbone.image_spec) for split in ("train", "test")}
    networks = {"pretrained": backbone.variables, "random": random_network(backbone, data["train"][0])}
    accuracy = {name: probe(backbone, variables, data) for name, variables in networks.items()}
    for name, value in accuracy.items():
        print(f"{name:11} {value:.4f}")
    args.output.write_text(json.dumps({"images": COUNT, "size": SIZE, "accuracy": accuracy}, indent=1) + "\n")


def parse_folders(description: str, results: str) -> argparse.Namespace:
    """Where MobileNetV2, CIFAR-10 and Fashion-MNIST are, and the file for what is measured.

    Args:
        results: its name in benchmarks/results.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    shared = ROOT.parent / "shared"
    parser.add_argument("--mobilenetv2", type=Path, default=shared / "weights" / "mobilenetv2_100")
    parser.add_argument("--cifar10", type=Path, default=shared / "data" / "cifar10")
    parser.add_argument("--fashion-mnist", type=Path, default=shared / "data" / "fashion-mnist")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / f"{results}.json")
    args = parser.parse_args()
    for folder in (args.mobilenetv2, args.cifar10, args.fashion_mnist):
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    return args


def photographs(folder: Path, split: str, spec: ImageSpec, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [count, *spec.shape] and their labels."""
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(folder / f"{split}-*.parquet"), split="train")
    rows = rows.shuffle(seed=0).select(range(count))
    return np.stack([spec.to_uint8(image.convert("RGB")) for image in rows["image"]]), np.array(rows["label"])


def features_of(backbone: finetune.Backbone, images: np.ndarray) -> np.ndarray:
    classifier, variables = finetune.build_classifier(backbone, 10)
    return features(classifier, variables, backbone.image_spec, images)


def random_network(backbone: finetune.Backbone, images: np.ndarray) -> Any:
    """Fresh parameters; the running statistics are those of 200 photographs."""
    pixels = backbone.image_spec.normalize(jax.numpy.asarray(images[:200]))
    variables = jax.jit(backbone.module.init)(jax.random.key(0), pixels[:1])
    train = jax.jit(lambda v: backbone.module.apply(v, pixels, train=True, mutable=["batch_stats"])[1])
    old, new = variables["batch_stats"], train(variables)["batch_stats"]
    keep = 0.9  # of the old statistics, in each step
    return {**variables, "batch_stats": jax.tree.map(lambda o, n: (n - keep * o) / (1 - keep), old, new)}


def features(classifier: Classifier, variables: Any, spec: ImageSpec, images: np.ndarray) -> np.ndarray:
    """What the head reads of uint8 [n, *spec.shape], float32 [n, num_features]."""
    step = make_feature_step(classifier, spec)
    return np.concatenate([step(variables, images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def probe(backbone: finetune.Backbone, variables: Any, data: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    classifier, whole = finetune.build_classifier((backbone.module, variables), 10, image_size=SIZE)
    train, test = (features(classifier, whole, backbone.image_spec, data[split][0]) for split in ("train", "test"))
    scale = train.std()  # one number for all features, so that one strength suits both networks
    fitted = fit_linear_probe(train / scale, data["train"][1], 10, l2=100.0)
    logits = test / scale @ np.asarray(fitted.kernel) + np.asarray(fitted.bias)
    return float((logits.argmax(axis=1) == data["test"][1]).mean())


if __name__ == "__main__":
    main()
