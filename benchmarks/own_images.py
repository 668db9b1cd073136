"""Is ``finetune train`` as good as what one would try by hand? 6 x 60 photographs of CIFAR-10, MobileNetV2.

    python -m benchmarks.own_images   # table, and benchmarks/results/own_images.json; half an hour on two cores

By hand: a linear probe; fine-tuning of all parameters; and LoRA on the 1 x 1 convolutions, which have most of them; the
latter two for ten epochs of flipped images, from a head of zeros. All are measured on the same 600 other photographs,
100 of each class. Data and weights are found in ../shared, or where the options say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.all import CIFAR10, MOBILENET, without_paths
from finetune.recipe.data import DataConfig

CLASSES, TRAIN, TEST = 6, 60, 100
EPOCHS, MINUTES = 10, 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--mobilenetv2", type=Path, default=MOBILENET)
    parser.add_argument("--cifar10", type=Path, default=CIFAR10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "own_images.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        write_photographs(args.cifar10, photos)
        results = {name: by_hand(name, photos, args.mobilenetv2, args.seed) for name in STAGES}
        results["train"] = by_command(photos, args.mobilenetv2, args.seed)
    args.output.write_text(
        json.dumps({"seed": args.seed, "runs": without_paths(results)}, indent=1) + "\n", encoding="utf-8"
    )
    print("| run | test accuracy | seconds |\n| --- | --- | --- |")
    for name, result in results.items():
        print(f"| {name} | {result['accuracy']:.4f} | {result['seconds']:.0f} |")


def write_photographs(source: Path, target: Path) -> None:
    """A folder for each split and class."""
    from finetune.data.sources import read_source

    splits = read_source(DataConfig(source=str(source)))
    for name, count in (("train", TRAIN), ("test", TEST)):
        split = splits[name]
        for label in range(CLASSES):
            folder = target / name / split.names[label]
            folder.mkdir(parents=True)
            rows = (split.labels == label).nonzero()[0][:count]
            for row in rows:
                (folder / f"{row}.jpg").write_bytes(split.images[int(row)])  # as the table has them


_COSINE = {"schedule": {"name": "cosine", "warmup": 0.1}}
_HEAD = {"match": "head", "learning_rate": 1e-3, **_COSINE}
_TRAINED = {"epochs": EPOCHS, "batch_size": 32, "augment": {"hflip": 0.5}}
STAGES: dict[str, dict[str, Any]] = {
    "probe": {"type": "linear_probe"},
    "finetune": {
        **_TRAINED,
        "partitions": [_HEAD, {"match": "backbone", "learning_rate": 1e-4, "weight_decay": 0.01, **_COSINE}],
    },
    "lora": {
        **_TRAINED,
        "partitions": [
            _HEAD,
            {"match": ".*/(expand|project)/conv/kernel", "learning_rate": 1e-3, "lora": {"rank": 8}, **_COSINE},
            {"match": "backbone", "frozen": True},
        ],
    },
}


def by_hand(name: str, photos: Path, backbone: Path, seed: int) -> dict[str, Any]:
    recipe = photos.parent / f"{name}.yaml"
    document = {
        "name": name,
        "seed": seed,
        "backbone": {"source": str(backbone)},
        "data": {"source": str(photos)},
        "stages": [{"name": name, **STAGES[name]}],
    }
    recipe.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    return _finetune(photos.parent / f"run-{name}", "run", str(recipe))


def by_command(photos: Path, backbone: Path, seed: int) -> dict[str, Any]:
    options = ("--backbone", str(backbone), "--minutes", str(MINUTES), "--seed", str(seed))
    return _finetune(photos.parent / "run-train", "train", str(photos), *options)


def _finetune(folder: Path, *arguments: str) -> dict[str, Any]:
    """The result of the model that a run keeps, and the seconds of the whole command."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "finetune.cli", *arguments, "-o", str(folder)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    kept = next(result for result in summary["results"] if result["name"] == summary["kept"]["stage"])
    said = text.splitlines()[:2] if arguments[0] == "train" else []
    steps = {result["name"]: result["accuracy"] for result in summary["results"]}
    seconds = time.perf_counter() - began
    return {"accuracy": kept["accuracy"], "seconds": seconds, "kept": kept["name"], "steps": steps, "said": said}


if __name__ == "__main__":
    main()
