"""How something learns: durations, learning-rate schedules, optimizers and losses, each by name from a closed list."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from finetune.recipe.base import Fraction, Part, by_name


class Length(Part):
    """A length of training in one of four units; epochs are passes over the training images."""

    steps: int | None = Field(None, ge=0)
    epochs: float | None = Field(None, ge=0)
    examples: int | None = Field(None, ge=0)
    percent: float | None = Field(None, ge=0, le=100)  # of the stage's steps

    @model_validator(mode="after")
    def _one_unit(self) -> Length:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("a duration has one unit: {steps: N}, {epochs: N}, {examples: N} or {percent: N}")
        return self


def _fraction_of_the_stage(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < 1:
            raise ValueError(
                "a plain number is a fraction of the stage, below 1; "
                "otherwise give {steps: N}, {epochs: N}, {examples: N} or {percent: N}"
            )
        return {"percent": 100.0 * value}
    return value


Duration = Annotated[Length, BeforeValidator(_fraction_of_the_stage)]
_NONE = Length(steps=0)


class _Warmed(Part):
    """A linear rise to the peak, before whatever the schedule does.

    Attributes:
        warmup: how long it takes.
        warmup_init_factor: rate of its first step as a fraction of the peak. By default one step's rise, so that no
            step is lost at rate zero.
    """

    warmup: Duration = _NONE
    warmup_init_factor: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _starts_only_what_there_is(self) -> _Warmed:
        if self.warmup_init_factor is not None and self.warmup == _NONE:
            raise ValueError("warmup_init_factor needs a warmup")
        return self


class Constant(_Warmed):
    """The peak rate, after the warm-up."""

    name: Literal["constant"] = "constant"


class Cosine(_Warmed):
    """Half a cosine from the peak to ``end_factor`` times the peak (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    name: Literal["cosine"] = "cosine"
    end_factor: float = Field(0.0, ge=0, le=1)  # last rate as a fraction of the peak


class Linear(_Warmed):
    """A straight line from the peak down to ``end_factor`` times the peak."""

    name: Literal["linear"] = "linear"
    end_factor: float = Field(0.0, ge=0, le=1)


class Step(_Warmed):
    """The rate is multiplied by ``decay_rate`` at each of the ``milestones``, counted from the stage's start."""

    name: Literal["step"] = "step"
    milestones: list[Duration] = Field(min_length=1)
    decay_rate: float = Field(0.1, gt=0, lt=1)


class Exponential(_Warmed):
    """The rate is multiplied by ``decay_rate`` once per ``transition``: smoothly, or in stairs."""

    name: Literal["exponential"] = "exponential"
    transition: Duration
    decay_rate: float = Field(gt=0, lt=1)
    staircase: bool = False


class OneCycle(Part):
    """Cosine rise from ``init_factor`` times the peak, then cosine fall to ``end_factor`` times it (Smith & Topin 2018,
    arXiv:1708.07120); the defaults are PyTorch's."""

    name: Literal["one_cycle"] = "one_cycle"
    warmup: Duration = Length(percent=30.0)  # the rise
    init_factor: float = Field(1 / 25, gt=0, le=1)
    end_factor: float = Field(1 / 25e4, ge=0, le=1)


class CosineRestarts(_Warmed):
    """Cosine cycles that begin at the peak again (warm restarts, arXiv:1608.03983); cycle i lasts
    ``cycle * cycle_mul**i`` and peaks at ``cycle_decay**i`` times the peak."""

    name: Literal["cosine_restarts"] = "cosine_restarts"
    cycle: Duration
    cycle_mul: float = Field(1.0, ge=1)
    cycle_decay: float = Field(1.0, gt=0, le=1)
    end_factor: float = Field(0.0, ge=0, le=1)


Schedule = Annotated[
    Constant | Cosine | Linear | Step | Exponential | OneCycle | CosineRestarts, Field(discriminator="name"), by_name
]


class Sgd(Part):
    """Stochastic gradient descent; weight decay is added to the gradient, as in PyTorch."""

    name: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9
    nesterov: bool = False


class Adam(Part):
    """Kingma & Ba 2015, arXiv:1412.6980; weight decay is added to the gradient, as in PyTorch."""

    name: Literal["adam"] = "adam"
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: float = Field(1e-8, gt=0)


class AdamW(Part):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: float = Field(1e-8, gt=0)


class Lion(Part):
    """Sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675); decoupled weight decay."""

    name: Literal["lion"] = "lion"
    b1: Fraction = 0.9
    b2: Fraction = 0.99


class Adafactor(Part):
    """Second moments kept by rows and columns (Shazeer & Stern 2018, arXiv:1804.04235), no first moment, absolute
    learning rate; decoupled weight decay."""

    name: Literal["adafactor"] = "adafactor"
    decay_rate: Fraction = 0.8
    clip: float = Field(1.0, gt=0)  # greatest root mean square of a leaf's update


class Lamb(Part):
    """Adam with a trust ratio for each leaf (You et al. 2020, arXiv:1904.00962); decoupled weight decay."""

    name: Literal["lamb"] = "lamb"
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: float = Field(1e-6, gt=0)


class Lars(Part):
    """SGD with a trust ratio for each leaf (You et al. 2017, arXiv:1708.03888); weight decay is part of the ratio."""

    name: Literal["lars"] = "lars"
    momentum: Fraction = 0.9
    trust: float = Field(1e-3, gt=0)


class Muon(Part):
    """Orthogonalized momentum for dense kernels (Jordan 2024); AdamW for every other leaf; decoupled weight decay."""

    name: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    nesterov: bool = True
    b1: Fraction = 0.9
    b2: Fraction = 0.999


Optimizer = Annotated[Sgd | Adam | AdamW | Lion | Adafactor | Lamb | Lars | Muon, Field(discriminator="name"), by_name]

# How much each class counts, in the order of the class names; ``balanced`` takes one over its share of the images.
ClassWeights = Literal["balanced"] | list[Annotated[float, Field(ge=0)]]


class CrossEntropy(Part):
    """Softmax cross-entropy against a class or a distribution over classes."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Fraction = 0.0  # share of the target spread over all classes (Szegedy et al. 2016)
    class_weights: ClassWeights | None = None


class Focal(Part):
    """Cross-entropy in which well-classified images count less (Lin et al. 2017, arXiv:1708.02002)."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0)
    class_weights: ClassWeights | None = None


class BinaryCrossEntropy(Part):
    """Binary cross-entropy of every class by itself, for images with several labels (or one: Wightman et al. 2021,
    arXiv:2110.00476)."""

    name: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    label_smoothing: Fraction = 0.0
    class_weights: ClassWeights | None = None


Loss = Annotated[CrossEntropy | Focal | BinaryCrossEntropy, Field(discriminator="name"), by_name]
