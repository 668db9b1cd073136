"""Do transferred weights and running statistics carry knowledge? A linear probe on CIFAR-10, pretrained and random.

    python -m benchmarks.mobilenet_probe FOLDER CIFAR10   # table, and benchmarks/results/mobilenet_probe.json

FOLDER is a checkpoint with BatchNorm (MobileNetV2 in timm's layout), CIFAR10 a folder with the dataset's parquet files.
2,000 training and 2,000 test photographs, brought to 96 pixels. The random network has the running statistics of the
training photographs, so that its features are alive too; both probes choose their own strength.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import finetune
from finetune.data.image_spec import ImageSpec
from finetune.training.probe import fit_probe
from finetune.training.step import make_feature_step

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


def photographs(folder: Path, split: str, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [COUNT, SIZE, SIZE, 3] and their labels."""
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(folder / f"{split}-*.parquet"), split="train")
    rows = rows.shuffle(seed=0).select(range(COUNT))
    return np.stack([spec.to_uint8(image.convert("RGB")) for image in rows["image"]]), np.array(rows["label"])


def random_network(backbone: finetune.Backbone, images: np.ndarray) -> Any:
    """Fresh parameters; running statistics by ten batches in training mode."""
    pixels = np.zeros((1, SIZE, SIZE, 3), np.float32)
    variables = jax.jit(backbone.module.init)(jax.random.key(0), pixels)

    @jax.jit
    def update(variables: Any, batch: jax.Array) -> Any:
        pixels = backbone.image_spec.normalize(batch)
        _, updated = backbone.module.apply(variables, pixels, train=True, mutable=["batch_stats"])
        return {**variables, **updated}

    for start in range(0, 20 * BATCH, BATCH):
        variables = update(variables, images[start : start + BATCH])
    return variables


def probe(backbone: finetune.Backbone, variables: Any, data: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    classifier, whole = finetune.build_classifier((backbone.module, variables), 10, image_size=SIZE)
    step = make_feature_step(classifier, backbone.image_spec)

    def features(split: str) -> np.ndarray:
        images = data[split][0]
        return np.concatenate([step(whole, images[i : i + BATCH]) for i in range(0, len(images), BATCH)])

    train, test = features("train"), features("test")
    scale = train.std() + 1e-12  # one number, so that one grid of strengths suits both networks
    kernel, bias, _ = fit_probe(train / scale, data["train"][1], 10, folds=3)
    logits = test / scale @ np.asarray(kernel) + np.asarray(bias)
    return float((logits.argmax(axis=1) == data["test"][1]).mean())


if __name__ == "__main__":
    main()
