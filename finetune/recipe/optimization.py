"""How parameters are trained: durations, learning-rate schedules, optimizers and losses, each from a closed list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from finetune.recipe.base import ByName, Fraction, Part


class Length(Part):
    """A length of training, in one of four units.

    Attributes:
        steps: optimizer steps.
        epochs: passes over the training images.
        examples: training images.
        percent: share of the stage's steps, from 0 to 100.
    """

    steps: int | None = Field(None, ge=0)
    epochs: float | None = Field(None, ge=0)
    examples: int | None = Field(None, ge=0)
    percent: float | None = Field(None, ge=0, le=100)

    @property
    def is_zero(self) -> bool:
        return not (self.steps or self.epochs or self.examples or self.percent)

    def without_effect(self) -> Mapping[str, str]:
        return {name: "in a duration of another unit" for name in Length.model_fields if getattr(self, name) is None}

    @model_validator(mode="after")
    def _has_one_unit(self) -> Length:
        if sum(getattr(self, name) is not None for name in Length.model_fields) != 1:
            raise ValueError("a duration has one unit: {steps: N}, {epochs: N}, {examples: N} or {percent: N}")
        return self


def _fraction_as_percent(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < 1:
            raise ValueError(
                "a plain number is a fraction of the stage, below 1; "
                "otherwise give {steps: N}, {epochs: N}, {examples: N} or {percent: N}"
            )
        return {"percent": 100.0 * value}
    return value


Duration = Annotated[Length, BeforeValidator(_fraction_as_percent, json_schema_input_type=Length | Fraction)]


class _Warmed(Part):
    """A linear warm-up to the peak learning rate, before the schedule's own curve.

    Attributes:
        warmup: how long the warm-up takes.
        warmup_init_factor: first learning rate as a fraction of the peak; by default one step's rise, so that no step
            is lost at rate zero.
    """

    name: str
    warmup: Duration = Length(steps=0)
    warmup_init_factor: float | None = Field(None, ge=0, le=1)

    def without_effect(self) -> Mapping[str, str]:
        return {"warmup_init_factor": "without a warmup: add one, or leave it out"} if self.warmup.is_zero else {}


class Constant(_Warmed):
    """The peak learning rate, after the warm-up."""

    name: Literal["constant"] = "constant"


class Cosine(_Warmed):
    """Half a cosine from the peak to ``end_factor`` times the peak (Loshchilov & Hutter 2017, arXiv:1608.03983).

    Attributes:
        end_factor: last learning rate as a fraction of the peak.
    """

    name: Literal["cosine"] = "cosine"
    end_factor: float = Field(0.0, ge=0, le=1)


class Linear(_Warmed):
    """A straight line from the peak down to ``end_factor`` times the peak.

    Attributes:
        end_factor: last learning rate as a fraction of the peak.
    """

    name: Literal["linear"] = "linear"
    end_factor: float = Field(0.0, ge=0, le=1)


class Step(_Warmed):
    """The learning rate is multiplied by ``decay_rate`` at each milestone.

    Attributes:
        milestones: durations from the stage's start, in rising order.
        decay_rate: factor at each of them.
    """

    name: Literal["step"] = "step"
    milestones: list[Duration] = Field(min_length=1)
    decay_rate: float = Field(0.1, gt=0, lt=1)


class Exponential(_Warmed):
    """The learning rate is multiplied by ``decay_rate`` once per ``transition``.

    Attributes:
        transition: duration of one decay.
        decay_rate: factor per transition.
        staircase: decay in steps at the end of each transition instead of smoothly.
    """

    name: Literal["exponential"] = "exponential"
    transition: Duration
    decay_rate: float = Field(gt=0, lt=1)
    staircase: bool = False


class OneCycle(Part):
    """Cosine rise from ``init_factor`` times the peak, then cosine fall to ``end_factor`` times it (Smith & Topin 2018,
    arXiv:1708.07120); the defaults are PyTorch's.

    Attributes:
        warmup: how long the rise takes.
        init_factor: first learning rate as a fraction of the peak.
        end_factor: last learning rate as a fraction of the peak.
    """

    name: Literal["one_cycle"] = "one_cycle"
    warmup: Duration = Length(percent=30.0)
    init_factor: float = Field(1 / 25, gt=0, le=1)
    end_factor: float = Field(1 / 25e4, ge=0, le=1)

    def without_effect(self) -> Mapping[str, str]:
        return {"init_factor": "without a warmup: make that longer, or leave it out"} if self.warmup.is_zero else {}


class CosineRestarts(_Warmed):
    """Cosine cycles, each from its peak down (warm restarts, arXiv:1608.03983); cycle i lasts
    ``cycle * cycle_mul**i`` and peaks at ``cycle_decay**i`` times the peak learning rate.

    Attributes:
        cycle: duration of the first cycle.
        cycle_mul: length of a cycle relative to the one before.
        cycle_decay: peak of a cycle relative to the one before.
        end_factor: last learning rate of a cycle as a fraction of its peak.
    """

    name: Literal["cosine_restarts"] = "cosine_restarts"
    cycle: Duration
    cycle_mul: float = Field(1.0, ge=1)
    cycle_decay: float = Field(1.0, gt=0, le=1)
    end_factor: float = Field(0.0, ge=0, le=1)


Schedule = Annotated[
    Constant | Cosine | Linear | Step | Exponential | OneCycle | CosineRestarts, Field(discriminator="name"), ByName()
]

_NO_MOMENTUM = "with momentum 0: set a momentum, or leave it out"


class Sgd(Part):
    """Stochastic gradient descent; weight decay is added to the gradient, as in PyTorch.

    Attributes:
        momentum: decay of the running sum of gradients.
        nesterov: look one step ahead along the momentum.
    """

    name: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9
    nesterov: bool = False

    def without_effect(self) -> Mapping[str, str]:
        return {} if self.momentum else {"nesterov": _NO_MOMENTUM}


class Adam(Part):
    """Kingma & Ba 2015, arXiv:1412.6980; weight decay is added to the gradient, as in PyTorch.

    Attributes:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
    """

    name: Literal["adam"] = "adam"
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: float = Field(1e-8, gt=0)


class AdamW(Part):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Attributes:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
    """

    name: Literal["adamw"] = "adamw"
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: float = Field(1e-8, gt=0)


class Lion(Part):
    """Sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675); decoupled weight decay.

    Attributes:
        b1: share of the momentum in the update.
        b2: decay of the momentum.
    """

    name: Literal["lion"] = "lion"
    b1: Fraction = 0.9
    b2: Fraction = 0.99


class Adafactor(Part):
    """Second moments kept by rows and columns (Shazeer & Stern 2018, arXiv:1804.04235), no first moment, absolute
    learning rate; decoupled weight decay.

    Attributes:
        decay_rate: exponent of the second moment's decay.
        clip: greatest root mean square of a leaf's update.
    """

    name: Literal["adafactor"] = "adafactor"
    decay_rate: Fraction = 0.8
    clip: float = Field(1.0, gt=0)


class Lamb(Part):
    """Adam with a trust ratio for each leaf (You et al. 2020, arXiv:1904.00962); decoupled weight decay.

    Attributes:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
    """

    name: Literal["lamb"] = "lamb"
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: float = Field(1e-6, gt=0)


class Lars(Part):
    """SGD with a trust ratio for each leaf (You et al. 2017, arXiv:1708.03888); weight decay is part of the ratio.

    Attributes:
        momentum: decay of the running sum of updates.
        trust: coefficient of the trust ratio.
    """

    name: Literal["lars"] = "lars"
    momentum: Fraction = 0.9
    trust: float = Field(1e-3, gt=0)


class Muon(Part):
    """Orthogonalized momentum for dense kernels (Jordan 2024); AdamW for every other leaf; decoupled weight decay.

    Attributes:
        momentum: decay of the running mean of gradients.
        nesterov: look one step ahead along the momentum.
        b1: AdamW's decay of the first moment.
        b2: AdamW's decay of the second moment.
    """

    active_defaults: ClassVar[frozenset[str]] = frozenset({"nesterov"})

    name: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    nesterov: bool = True
    b1: Fraction = 0.9
    b2: Fraction = 0.999

    def without_effect(self) -> Mapping[str, str]:
        return {} if self.momentum else {"nesterov": _NO_MOMENTUM}


Optimizer = Annotated[Sgd | Adam | AdamW | Lion | Adafactor | Lamb | Lars | Muon, Field(discriminator="name"), ByName()]


def has_state(optimizer: Optimizer) -> bool:
    """Whether an optimizer keeps anything from step to step."""
    return bool(getattr(optimizer, "momentum", True)) or isinstance(optimizer, Muon)


class _Weighted(Part):
    """A loss in which classes can count differently.

    Attributes:
        class_weights: how much each class counts, in the order of the class names; ``balanced`` takes one over its
            share of the training images.
    """

    name: str
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None = None

    def without_effect(self) -> Mapping[str, str]:
        equal = isinstance(self.class_weights, list) and set(self.class_weights) == {1.0}
        return {"class_weights": "where each class weighs 1: leave it out"} if equal else {}


class CrossEntropy(_Weighted):
    """Softmax cross-entropy against a class or a distribution over classes.

    Attributes:
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567).
    """

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Fraction = 0.0


class Focal(_Weighted):
    """Cross-entropy in which well-classified images count less (Lin et al. 2017, arXiv:1708.02002).

    Attributes:
        gamma: how much less; 0 is cross-entropy.
    """

    name: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0)


class BinaryCrossEntropy(_Weighted):
    """Binary cross-entropy of every class by itself, for images with several labels (or one: Wightman et al. 2021,
    arXiv:2110.00476).

    Attributes:
        label_smoothing: share of each class's target that is spread.
    """

    name: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    label_smoothing: Fraction = 0.0


Loss = Annotated[CrossEntropy | Focal | BinaryCrossEntropy, Field(discriminator="name"), ByName()]
