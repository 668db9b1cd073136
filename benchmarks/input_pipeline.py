"""What images cost before they reach the model.

    python -m benchmarks.input_pipeline                       # decoding, checking and end-to-end training
    python -m benchmarks.input_pipeline --data FOLDER         # where CIFAR-10 is as Parquet

Prints a table and writes benchmarks/results/input_pipeline.json. Decoding: JPEG to a 224x224 random resized crop on
one core, against Pillow's decode, crop and bicubic resize of the same boxes. Checking: 60,000 images fully decoded, and
once more with what the first start remembered. Training: ViT-B/32, everything trains, batch 32, from CIFAR-10's JPEG
files (random crops and flips at 224) in the trainer's loop, against the bare step on a batch that is on the device.
Sides take turns; a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.augment import make_training_transform, random_box
from finetune.data.classes import align_classes
from finetune.data.image_scan import scan_images
from finetune.data.loader import training_batches
from finetune.data.sources import read_source
from finetune.images.fast_decode import Box, decode_crop
from finetune.images.spec import ImageSpec
from finetune.recipe import DataConfig
from finetune.recipe.augment import Augment, RandomResizedCrop

ROOT = Path(__file__).parent.parent
SPEC = ImageSpec(224, 224, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIZES = ((500, 375), (2000, 1500))
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "cifar10")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=6, help="training steps of a turn")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "input_pipeline.json")
    args = parser.parse_args()

    results: dict[str, Any] = {"decoding": [decoding(*size, args.rounds) for size in SIZES]}
    if args.data.is_dir():
        results["checking"] = checking(args.data)
        results["training"] = training(args.data, args.rounds, args.steps)
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(results)


def decoding(width: int, height: int, rounds: int, count: int = 60) -> dict[str, Any]:
    """Both sides on one core, on the same boxes."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        data, rng = photograph(width, height), np.random.default_rng(1)
        boxes = [random_box(width, height, RandomResizedCrop(), rng) for _ in range(count)]

        def ours() -> list[np.ndarray]:
            return [decode_crop(data, lambda *_, box=box: box, SPEC) for box in boxes]

        def pillow() -> list[np.ndarray]:
            return [by_pillow(data, box) for box in boxes]

        off = np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(ours(), pillow(), strict=True)])
        ratios = alternate(ours, pillow, rounds)
    finally:
        os.sched_setaffinity(0, everywhere)
    return {"size": [width, height], "bytes": len(data), **ratios, "mean_difference": round(float(off), 3)}


def by_pillow(data: bytes, box: Box) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.crop(box).resize((224, 224), Image.Resampling.BICUBIC))


def photograph(width: int, height: int) -> bytes:
    """A JPEG of noise at many scales, the coarse ones strongest; quality 90."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, 3))
    for cell in (4, 8, 16, 32, 64):
        small = Image.fromarray(rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), np.uint8))
        total += cell * np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float)
    low, high = total.min(), total.max()
    file = io.BytesIO()
    Image.fromarray(((total - low) / (high - low) * 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def checking(data: Path) -> dict[str, Any]:
    splits, _ = align_classes(read_source(DataConfig(source=str(data))))
    with tempfile.TemporaryDirectory() as cache:

        def look() -> None:
            for split in splits.values():
                scan_images(split, Path(cache))

        first, second = seconds(look), seconds(look)
    return {"images": sum(map(len, splits.values())), "first_seconds": first, "second_seconds": second}


def training(data: Path, rounds: int, steps: int) -> dict[str, Any]:
    from benchmarks.step_sides import Ours

    ours = Ours(BATCH)
    splits, _ = align_classes(read_source(DataConfig(source=str(data))))
    transform = make_training_transform(Augment(random_resized_crop=RandomResizedCrop(), hflip=0.5), SPEC)
    batches = training_batches(splits["train"], transform, BATCH, seed=0)
    return {
        "batch_size": BATCH,
        **alternate(lambda: ours.train(steps, batches), lambda: ours.run("full", steps), rounds),
    }


def alternate(ours: Callable[[], Any], other: Callable[[], Any], rounds: int) -> dict[str, float]:
    """How many times as fast ours is as the other."""
    ours(), other()
    ratios = [1 / (seconds(ours) / seconds(other)) for _ in range(rounds)]
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(results: dict[str, Any]) -> None:
    rows = {f"crops of {'x'.join(map(str, row['size']))} JPEG, over Pillow's": row for row in results["decoding"]}
    if "training" in results:
        rows["training from files, over the bare step"] = results["training"]
    print("| what | ratio | least | most |")
    print("| --- | --- | --- | --- |")
    for what, row in rows.items():
        print(f"| {what} | {row['ratio']:.3f} | {row['ratio_min']:.3f} | {row['ratio_max']:.3f} |")
    if "checking" in results:
        row = results["checking"]
        first, second = row["first_seconds"], row["second_seconds"]
        print(f"\n{row['images']:,} images checked in {first:.1f} s, again in {second:.2f} s")


if __name__ == "__main__":
    main()
