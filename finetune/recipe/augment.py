"""Random augmentation of training images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from finetune.recipe.base import ByName, Part, mistakes


def _in_order(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"needs two numbers above 0, the smaller first; received {list(pair)}")
    return pair


def _at_most_one(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[1] > 1:
        raise ValueError(f"shares of the image are at most 1; received {list(pair)}")
    return pair


# YAML has lists, not pairs
Range = Annotated[
    tuple[float, float],
    BeforeValidator(
        lambda value: tuple(value) if isinstance(value, list) else value, json_schema_input_type=tuple[float, float]
    ),
    AfterValidator(_in_order),
]
Shares = Annotated[Range, AfterValidator(_at_most_one)]
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]


class RandomResizedCrop(Part):
    """A random part of the image, resized to the model's size (Szegedy et al. 2015, arXiv:1409.4842).

    Attributes:
        scale: least and greatest share of the image's area.
        ratio: least and greatest width over height, drawn on a logarithmic scale.
    """

    scale: Shares = (0.35, 1.0)
    ratio: Range = (3 / 4, 4 / 3)


class ColorJitter(Part):
    """Random changes of colour, in random order.

    Attributes:
        brightness: greatest relative change.
        contrast: greatest relative change.
        saturation: greatest relative change.
        hue: greatest shift, in turns of the colour circle.
    """

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: float = Field(0.0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _changes_something(self) -> ColorJitter:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError(
                "has no effect while brightness, contrast, saturation and hue are all 0: set one, or leave it out"
            )
        return self


class RandAugment(Part):
    """Random operations in sequence, all of one magnitude (Cubuk et al. 2020, arXiv:1909.13719).

    Attributes:
        num_ops: how many.
        magnitude: from 0 to 30.
    """

    name: Literal["randaugment"] = "randaugment"
    num_ops: int = Field(2, ge=1, le=10)
    magnitude: float = Field(9.0, ge=0, le=30)


class TrivialAugment(Part):
    """One operation of random magnitude, from the wide ranges (Müller & Hutter 2021, arXiv:2103.10158)."""

    name: Literal["trivialaugment"] = "trivialaugment"


AutoAugment = Annotated[RandAugment | TrivialAugment, Field(discriminator="name"), ByName()]


class RandomErasing(Part):
    """A box of the image is blanked, on the device (Zhong et al. 2020, arXiv:1708.04896).

    Attributes:
        probability: for each image.
        area: least and greatest share of the image.
    """

    probability: Probability = 0.25
    area: Shares = (0.02, 1 / 3)

    @model_validator(mode="after")
    def _erases_sometimes(self) -> RandomErasing:
        if self.probability == 0:
            raise mistakes(self, {"probability": "random_erasing has no effect with probability 0: leave it out"})
        return self


def _defaults_for_true(value: Any) -> Any:
    return {} if value is True else value


class Augment(Part):
    """Random augmentation of each training image; by default none: images are prepared as in evaluation.

    Attributes:
        random_resized_crop: instead of evaluation's resize and centre crop; ``true`` takes the defaults.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        color_jitter: random changes of brightness, contrast, saturation and hue.
        auto_augment: ``randaugment`` or ``trivialaugment``.
        random_erasing: a blanked box, on the device.
    """

    random_resized_crop: Annotated[
        RandomResizedCrop | None,
        BeforeValidator(_defaults_for_true, json_schema_input_type=RandomResizedCrop | Literal[True] | None),
    ] = None
    hflip: Probability = 0.0
    vflip: Probability = 0.0
    color_jitter: ColorJitter | None = None
    auto_augment: AutoAugment | None = None
    random_erasing: RandomErasing | None = None
