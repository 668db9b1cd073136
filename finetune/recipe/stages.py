"""What a stage of a run is, and which parameters it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from finetune.recipe.augment import Augment
from finetune.recipe.base import Fraction, Name, Part, mistakes
from finetune.recipe.heads import (
    ClapStage,
    KnnStage,
    LinearProbeStage,
    LpPlusPlusStage,
    PrototypeStage,
    TipAdapterStage,
)
from finetune.recipe.optimization import AdamW, Constant, CrossEntropy, Loss, Optimizer, Schedule
from finetune.recipe.patterns import BLOCKS, check_pattern

FROZEN = "frozen"  # the label of all frozen parameters

_OF_TRAINABLE = (
    "name",
    "optimizer",
    "learning_rate",
    "schedule",
    "weight_decay",
    "weight_decay_on",
    "layer_decay",
    "l2_sp",
    "lora",
)


Metric = Literal["accuracy", "mean_average_precision", "loss"]


class Lora(Part):
    """Low-rank adapters in place of the matched kernels (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        rank: of the adapters.
        alpha: adapters are scaled by alpha / rank; by default 1.
        dora: train the kernels' magnitudes apart from their directions (Liu et al. 2024, arXiv:2402.09353).
    """

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    dora: bool = False

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


class Partition(Part):
    """A rule: which parameters it matches, and how they are trained. The first rule that matches a parameter takes it.

    Attributes:
        match: a regular expression for whole parameter paths such as ``head/kernel``, or one of ``head``,
            ``backbone``, ``norms``, ``biases``, ``embeddings``, ``blocks[i]`` and ``blocks[a:b]`` (of the backbone,
            counted as Python counts).
        name: what logs and tables call it; by default ``match``.
        frozen: not trained at all.
        optimizer: by name, or with its options.
        learning_rate: peak, per step.
        schedule: of the learning rate, by name or with its options.
        weight_decay: strength.
        weight_decay_on: ``kernels``, or ``all``: norms, biases, scales, tokens and positions as well.
        layer_decay: each block's learning rate is that of the block above it times this; the parameters above the
            blocks have the full rate (Clark et al. 2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254).
        l2_sp: strength of the pull to the pretrained values, of the head's parameters to zero (Li et al. 2018,
            arXiv:1802.01483).
        batch_norm: ``frozen`` normalizes with the running statistics in training too and keeps them; ``update`` updates
            them. By default frozen where the partition is.
        lora: train adapters; the matched kernels, of dense layers or 1 x 1 convolutions, stay as they are.
    """

    active_defaults: ClassVar[frozenset[str]] = frozenset({"optimizer", "schedule"})

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

    @property
    def is_of_head(self) -> bool:
        """Whether it can match parameters of the head only, as far as the rule itself shows."""
        return self.match == "head" or (self.match.startswith("head/") and "|" not in self.match)

    def without_effect(self) -> Mapping[str, str]:
        if self.frozen:
            return dict.fromkeys(_OF_TRAINABLE, "on a frozen partition: leave it out, or leave out frozen")
        cases = {}
        if self.weight_decay == 0:
            cases["weight_decay_on"] = "without weight_decay: set that, or leave it out"
        elif self.match == "embeddings" and self.weight_decay_on == "kernels":
            cases["weight_decay"] = "on embeddings, which are no kernels: add weight_decay_on: all, or leave it out"
        if self.is_of_head:
            cases["layer_decay"] = "on the head, which is above all blocks: leave it out"
        if self.lora is not None:
            cases["l2_sp"] = "with lora, which keeps the kernels at their pretrained values: leave it out"
            if not self.lora.dora:
                cases.setdefault("weight_decay_on", "with lora, all of whose parameters are kernels: leave it out")
                if self.optimizer.name == "muon":
                    case = "with lora, all of whose parameters muon orthogonalizes: leave it out"
                    cases |= {"optimizer.b1": case, "optimizer.b2": case}
        return cases

    @field_validator("match")
    @classmethod
    def _is_a_regular_expression(cls, match: str) -> str:
        if BLOCKS.fullmatch(match) is None:
            check_pattern(match)
        return match

    @model_validator(mode="after")
    def _is_trainable_or_frozen(self) -> Partition:
        if not self.frozen and self.learning_rate is None:
            raise ValueError("a partition needs learning_rate, or frozen: true")
        if not self.frozen and self.label == FROZEN:
            raise ValueError(f"the name {FROZEN!r} is reserved for frozen parameters: choose another")
        return self


class EarlyStopping(Part):
    """Ends a stage that no longer improves on the validation images.

    Attributes:
        patience: epochs without improvement after which the stage ends.
        metric: what has to improve; by default the one of ``evaluate.metric``.
        min_delta: a smaller difference is no improvement.
    """

    patience: int = Field(ge=1)
    metric: Metric | None = None
    min_delta: float = Field(0.0, ge=0)


class FrozenCache(Part):
    """Computing what is frozen once for each image, before the first epoch, instead of in each epoch.

    Attributes:
        mode: ``auto`` does so where it is exact, fits on the disk and saves work; ``on`` where it is exact and fits;
            ``off`` never.
        max_gb: most room on the disk that a stage takes; by default a quarter of what is free.
        dtype: of the values on the disk; by default as they are computed.
        views: augmented views kept of each image, for a stage with augmentation.
    """

    mode: Literal["auto", "on", "off"] = "on"
    max_gb: float | None = Field(None, gt=0)
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    views: int = Field(1, ge=1)

    def without_effect(self) -> Mapping[str, str]:
        return dict.fromkeys(("max_gb", "dtype", "views"), "with mode: off: leave it out") if self.mode == "off" else {}


def _mode_by_name(value: Any) -> Any:
    return {"mode": value} if isinstance(value, str) else value


class TrainStage(Part):
    """Gradient descent over the partitions.

    Attributes:
        name: what logs and results call the stage.
        epochs, steps, examples: how long, in one of them; steps are optimizer steps.
        batch_size: images of one optimizer step.
        grad_accum_steps: parts of a batch, computed one after the other; this divides the memory for activations.
        clip_grad_norm: greatest global norm of the trainable parameters' gradients.
        ema_decay: decay of an exponential moving average of the trainable parameters, which is then evaluated and
            saved. It rises to this value as min(ema_decay, (1 + step) / (10 + step)).
        loss: by name, or with its options.
        augment: random augmentation of each training image; none by default.
        mixup, cutmix: alpha of the Beta distribution that pairs of images are mixed by (Zhang et al. 2018,
            arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899); where both are given each batch takes one of them.
        compute_dtype: dtype of the computation; trainable parameters are float32 in either case.
        frozen_dtype: dtype of frozen parameters during the stage; afterwards they are as before.
        remat: recompute each block's activations in the backward pass instead of keeping them.
        scan_layers: trace and compile equal blocks once, for a deep transformer; random numbers are then others.
        rng_impl: JAX's generator of the random numbers of dropout, stochastic depth, mixing and adapters. ``rbg`` is
            faster on accelerators; its numbers may differ between kinds and numbers of devices.
        frozen_cache: compute what is frozen once for each image, by mode (``auto`` by default), or with options.
        early_stopping: end the stage where validation no longer improves; by default it runs to its end.
        carry_optimizer_state: start from the optimizer state of the stage before, for partitions that it trained with
            the same optimizer; adapters are drawn anew, and begin without.
        partitions: rules, in order; every parameter has to match one.
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
    scan_layers: bool = False
    rng_impl: Literal["threefry2x32", "rbg"] = "threefry2x32"
    frozen_cache: Annotated[
        FrozenCache,
        BeforeValidator(_mode_by_name, json_schema_input_type=FrozenCache | Literal["auto", "on", "off"]),
    ] = FrozenCache(mode="auto")
    early_stopping: EarlyStopping | None = None
    carry_optimizer_state: bool = False
    partitions: list[Partition] = Field(min_length=1)

    @property
    def trainable(self) -> list[Partition]:
        return [partition for partition in self.partitions if not partition.frozen]

    @property
    def may_train_backbone(self) -> bool:
        """Whether gradients may reach the backbone's parameters, as far as the rules themselves show."""
        return not all(partition.is_of_head for partition in self.trainable)

    @property
    def augments_on_host(self) -> bool:
        """Whether an image that is read twice is another each time, before it goes to the device."""
        names = set(Augment.model_fields) - {"random_erasing"}
        return not all(self.augment.has_default(name) for name in names)

    @property
    def kept_views(self) -> int:
        """Views of each image that are kept where what is frozen is computed once."""
        return self.frozen_cache.views if self.augments_on_host else 1

    @property
    def augments_on_device(self) -> bool:
        return bool(self.mixup or self.cutmix or self.augment.random_erasing)

    def without_effect(self) -> Mapping[str, str]:
        cases = {unit: "in a stage of another unit" for unit in _UNITS if getattr(self, unit) is None}
        if self.augments_on_device:
            cases["frozen_cache"] = (
                "with mixup, cutmix or random_erasing, which change each step's images: leave it out"
            )
        elif not self.augments_on_host:
            cases["frozen_cache.views"] = "without augmentation, where all views are the same: leave it out"
        elif self.frozen_cache.mode == "on" and self.frozen_cache.views == 1:
            cases["frozen_cache"] = "on augmented images without views, how many to keep of each: add them"
        if self.batch_size == self.grad_accum_steps:
            one = "where one image is computed at a time, which has no other to be mixed with: lower grad_accum_steps"
            cases |= {"mixup": f"{one}, or leave it out", "cutmix": f"{one}, or leave it out"}
        if not any(partition.frozen or partition.lora for partition in self.partitions):
            cases["frozen_dtype"] = "in a stage that freezes no parameter: leave it out"
        if not self.may_train_backbone:
            cases["remat"] = "in a stage that trains the head alone, where no gradient passes a block: leave it out"
        for i, partition in enumerate(self.partitions):
            if partition.is_of_head:
                cases[f"partitions.{i}.batch_norm"] = "on the head, which has no batch normalization: leave it out"
        return cases

    @model_validator(mode="after")
    def _has_one_length(self) -> TrainStage:
        if sum(getattr(self, unit) is not None for unit in _UNITS) != 1:
            raise ValueError("a stage needs either epochs, steps or examples")
        return self

    @model_validator(mode="after")
    def _batch_divides_into_equal_parts(self) -> TrainStage:
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of grad_accum_steps {self.grad_accum_steps}"
            )
        return self

    @model_validator(mode="after")
    def _trains_partitions_of_different_names(self) -> TrainStage:
        if not self.trainable:
            raise ValueError("every partition is frozen: nothing would be trained; give one a learning_rate")
        labels = [partition.label for partition in self.trainable]
        if repeated := sorted({label for label in labels if labels.count(label) > 1}):
            message = f"partitions need different names; used twice: {', '.join(repeated)}"
            raise mistakes(self, {"partitions": message})
        return self


_UNITS = ("epochs", "steps", "examples")


def _type(value: Any) -> Any:
    return value.get("type", "train") if isinstance(value, dict) else getattr(value, "type", "train")


Stage = Annotated[
    Annotated[TrainStage, Tag("train")]
    | Annotated[LinearProbeStage, Tag("linear_probe")]
    | Annotated[KnnStage, Tag("knn")]
    | Annotated[PrototypeStage, Tag("prototype")]
    | Annotated[TipAdapterStage, Tag("tip_adapter")]
    | Annotated[LpPlusPlusStage, Tag("lp++")]
    | Annotated[ClapStage, Tag("clap")],
    Discriminator(_type),
]
