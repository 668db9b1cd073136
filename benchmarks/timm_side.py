"""timm on PyTorch as others time it: the full step of a ViT, eager or compiled."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import timm
import torch

from benchmarks.side import serve, versions

MODELS = {"vit_b32": "vit_base_patch32_clip_224", "vit_l14": "vit_large_patch14_clip_224"}
NUM_CLASSES, LEARNING_RATE = 100, 1e-3


class Timm:
    """Adam over all parameters; images already normalized and in the device's memory."""

    def __init__(self, size: int, model: str = "vit_b32", dtype: str = "float32") -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, dtype)
        network = timm.create_model(MODELS[model], pretrained=False, num_classes=NUM_CLASSES)
        self.model = network.train().to(self.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=LEARNING_RATE, fused=True if self.device.type == "cuda" else None
        )
        self.images = torch.randn(size, 3, 224, 224, device=self.device)
        self.labels = torch.randint(0, NUM_CLASSES, (size,), device=self.device)
        self.forwards: dict[str, Any] = {"full": self._loss}

    def _loss(self) -> Any:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return torch.nn.functional.cross_entropy(self.model(self.images), self.labels)

    def run(self, what: str, count: int) -> None:
        """``full``: the step as it is written; ``compiled``: with its forward and backward pass compiled."""
        if what not in ("full", "compiled"):
            raise ValueError(f"only the full step is written for timm; asked for {what}")
        if what not in self.forwards:
            self.forwards[what] = torch.compile(self._loss)
        for _ in range(count):
            loss = self.forwards[what]()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def torch_versions() -> dict[str, Any]:
    return {**versions("torch", "timm"), "threads": torch.get_num_threads()}


def parse_arguments() -> dict[str, Any]:
    """Of a side: batch size, model and dtype."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size", type=int)
    parser.add_argument("--model", default="vit_b32", choices=MODELS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    return vars(parser.parse_args(sys.argv[1:]))


if __name__ == "__main__":
    serve(Timm(**parse_arguments()).run, {"versions": torch_versions})
