"""timm on PyTorch as ``benchmarks.step`` times it: the full step of ViT-B/32, asked for by lines like the others."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

import timm
import torch


class Timm:
    """Adam over all parameters, float32, images already normalized and in memory."""

    def __init__(self, size: int, num_classes: int = 100, learning_rate: float = 1e-3) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model("vit_base_patch32_clip_224", pretrained=False, num_classes=num_classes).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate)
        self.images = torch.randn(size, 3, 224, 224)
        self.labels = torch.randint(0, num_classes, (size,))

    def run(self, what: str, count: int) -> None:
        if what != "full":
            raise ValueError(f"only the full step is written for timm; asked for {what}")
        for _ in range(count):
            loss = torch.nn.functional.cross_entropy(self.model(self.images), self.labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()


def main() -> None:
    side = Timm(int(sys.argv[1]))
    for line in sys.stdin:
        what, count = line.split()
        if what == "versions":
            answer = {name: version(name) for name in ("torch", "timm")} | {"threads": torch.get_num_threads()}
        else:
            start = time.perf_counter()
            side.run(what, int(count))
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
