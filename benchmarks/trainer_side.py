"""transformers' Trainer with a timm model, as ``benchmarks.peers`` times it: the full step of a ViT in its loop."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import timm
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.side import serve, versions
from benchmarks.timm_side import LEARNING_RATE, MODELS, NUM_CLASSES, torch_versions


class WithLoss(torch.nn.Module):
    """A timm model as the Trainer calls one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = timm.create_model(name, pretrained=False, num_classes=NUM_CLASSES)

    def forward(self, pixel_values: Any, labels: Any) -> dict[str, Any]:
        logits = self.model(pixel_values)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Images(torch.utils.data.Dataset[dict[str, Any]]):
    """Normalized images in memory."""

    def __init__(self, size: int) -> None:
        torch.manual_seed(0)
        self.images, self.labels = torch.randn(size, 3, 224, 224), torch.randint(0, NUM_CLASSES, (size,))

    def __len__(self) -> int:
        return 1 << 20  # no end of an epoch within a measurement

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = index % len(self.images)
        return {"pixel_values": self.images[row], "labels": self.labels[row]}


class Clock(TrainerCallback):
    """Seconds from the end of the first step, which makes the optimizer's state, to the end of the last."""

    began = ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended = time.perf_counter()
        self.began = self.began or self.ended


class TrainerSide:
    def __init__(self, size: int) -> None:
        self.model, self.images, self.size = WithLoss(MODELS["vit_b32"]), Images(size), size
        self.folder = tempfile.TemporaryDirectory()

    def run(self, what: str, count: int) -> float:
        if what != "full":
            raise ValueError(f"only the full step is written for the Trainer; asked for {what}")
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=self.folder.name,
            max_steps=count + 1,
            per_device_train_batch_size=self.size,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        Trainer(self.model, arguments, train_dataset=self.images, callbacks=[clock]).train()
        return clock.ended - clock.began


if __name__ == "__main__":
    serve(
        TrainerSide(int(sys.argv[1])).run,
        {"versions": lambda: {**torch_versions(), **versions("transformers", "accelerate")}},
    )
