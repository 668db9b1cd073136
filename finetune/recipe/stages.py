"""What a stage of a run is, and who learns in it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from finetune.recipe.augment import Augment
from finetune.recipe.base import Fraction, Name, Part
from finetune.recipe.optimization import AdamW, Constant, CrossEntropy, Loss, Optimizer, Schedule

FROZEN = "frozen"  # the label of everything that does not learn


class Lora(Part):
    """Low-rank adapters in place of the matched kernels (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)  # adapters are scaled by alpha / rank; the rank itself by default
    dora: bool = False  # magnitudes learn apart from directions (Liu et al. 2024, arXiv:2402.09353)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


class Partition(Part):
    """Who learns, how fast.

    Attributes:
        match: a regular expression for whole parameter paths such as ``head/kernel``, or one of ``head``,
            ``backbone``, ``norms``, ``biases``, ``embeddings``, ``blocks[i]`` and ``blocks[a:b]`` (of the backbone,
            counted as Python counts).
        name: what logs and tables call it; by default ``match``.
        learning_rate: peak, per step.
        weight_decay: of kernels alone, unless ``weight_decay_on`` says all leaves.
        layer_decay: each block's rate is that of the block above it times this; top and head have the full rate
            (Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254).
        l2_sp: strength of the pull to the pretrained values, those of the head to zero (Li et al. 2018,
            arXiv:1802.01483).
        batch_norm: ``frozen`` normalizes with the running statistics in training too and keeps them; ``update`` updates
            them. By default frozen where the partition is.
        lora: adapters learn, the matched dense kernels stay as they are.
    """

    match: str
    name: Name | None = None
    frozen: bool = False
    optimizer: Optimizer = AdamW()
    learning_rate: float | None = Field(None, gt=0)
    schedule: Schedule = Constant()
    weight_decay: float = Field(0.0, ge=0)
    weight_decay_on: Literal["kernels", "all"] = "kernels"
    layer_decay: float | None = Field(None, gt=0, le=1)
    l2_sp: float = Field(0.0, ge=0)
    batch_norm: Literal["frozen", "update"] | None = None
    lora: Lora | None = None

    @property
    def label(self) -> str:
        return FROZEN if self.frozen else self.name or self.match

    @property
    def freezes_statistics(self) -> bool:
        return self.batch_norm == "frozen" or (self.batch_norm is None and self.frozen)

    @field_validator("match")
    @classmethod
    def _is_a_regular_expression(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        return match

    @model_validator(mode="after")
    def _learns_or_is_frozen(self) -> Partition:
        if not self.frozen and self.learning_rate is None:
            raise ValueError("a partition needs learning_rate, or frozen: true")
        learns = self.model_fields_set - {"match", "name", "frozen", "batch_norm"}
        if self.frozen and learns:
            raise ValueError(f"a frozen partition takes no {', '.join(sorted(learns))}")
        if not self.frozen and self.label == FROZEN:
            raise ValueError(f"the name {FROZEN!r} is kept for what does not learn")
        return self


class LinearProbeStage(Part):
    """Multinomial logistic regression on the frozen backbone's pooled features, which are computed once."""

    type: Literal["linear_probe"]
    name: Name = "probe"
    l2: float | None = Field(None, gt=0)  # strength; None: chosen by cross-validation on the training images


class TrainStage(Part):
    """Gradient descent over the partitions.

    Attributes:
        epochs, steps, examples: how long, in one of them; steps are optimizer steps.
        batch_size: images of one optimizer step.
        grad_accum_steps: parts of a batch, computed one after the other; this divides the memory for activations.
        clip_grad_norm: greatest global norm of the trainable parameters' gradients.
        ema_decay: decay of an exponential moving average of the trainable parameters, which is then measured and saved.
            It rises to this value as min(ema_decay, (1 + step) / (10 + step)).
        augment: what is done at random to each training image; nothing by default.
        mixup, cutmix: alpha of the Beta distribution that pairs of images are mixed by (Zhang et al. 2018,
            arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899); where both are given each batch takes one of them.
        compute_dtype: dtype of the computation; trainable parameters are float32 in either case.
        frozen_dtype: dtype that frozen parameters are held in during the stage; afterwards they are as before.
        remat: recompute each block's activations in the backward pass instead of keeping them.
        carry_optimizer_state: start from the optimizer state of the stage before, for partitions that it trained with
            the same optimizer.
    """

    type: Literal["train"] = "train"
    name: Name = "finetune"
    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    examples: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)
    grad_accum_steps: int = Field(1, ge=1)
    clip_grad_norm: float | None = Field(None, gt=0)
    ema_decay: Fraction | None = None
    loss: Loss = CrossEntropy()
    augment: Augment = Augment()
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    carry_optimizer_state: bool = False
    partitions: list[Partition] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> TrainStage:
        if sum(length is not None for length in (self.epochs, self.steps, self.examples)) != 1:
            raise ValueError("a stage needs either epochs, steps or examples")
        if all(partition.frozen for partition in self.partitions):
            raise ValueError("every partition is frozen: nothing would learn")
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of grad_accum_steps {self.grad_accum_steps}"
            )
        labels = [partition.label for partition in self.partitions if not partition.frozen]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"partitions need different names; used twice: {', '.join(twice)}")
        return self


def _type(value: Any) -> Any:
    return value.get("type", "train") if isinstance(value, dict) else getattr(value, "type", "train")


Stage = Annotated[
    Annotated[LinearProbeStage, Tag("linear_probe")] | Annotated[TrainStage, Tag("train")], Discriminator(_type)
]
