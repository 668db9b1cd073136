"""What is done at random to training images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from finetune.recipe.base import Part, by_name


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"needs two numbers above 0, the smaller first; received {list(pair)}")
    return pair


def _shares(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[1] > 1:
        raise ValueError(f"shares of the image are at most 1; received {list(pair)}")
    return pair


# YAML knows lists, not pairs
Range = Annotated[
    tuple[float, float],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    AfterValidator(_rising),
]
Shares = Annotated[Range, AfterValidator(_shares)]
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]


class RandomResizedCrop(Part):
    """A random part of the image, brought to the model's size (Szegedy et al. 2015, arXiv:1409.4842).

    Attributes:
        scale: least and greatest share of the image's area.
        ratio: least and greatest width over height, drawn on a logarithmic scale.
    """

    scale: Shares = (0.35, 1.0)
    ratio: Range = (3 / 4, 4 / 3)


class ColorJitter(Part):
    """Greatest relative change of each; hue in turns of the colour circle. They are applied in random order."""

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: float = Field(0.0, ge=0, le=0.5)


class RandAugment(Part):
    """Some operations one after the other, all at one magnitude (Cubuk et al. 2020, arXiv:1909.13719)."""

    name: Literal["randaugment"] = "randaugment"
    num_ops: int = Field(2, ge=1, le=10)
    magnitude: float = Field(9.0, ge=0, le=30)


class TrivialAugment(Part):
    """One operation at a random magnitude (Müller & Hutter 2021, arXiv:2103.10158), from the wide ranges."""

    name: Literal["trivialaugment"] = "trivialaugment"


AutoAugment = Annotated[RandAugment | TrivialAugment, Field(discriminator="name"), by_name]


class RandomErasing(Part):
    """A box of the image is blanked, on the device (Zhong et al. 2020, arXiv:1708.04896).

    Attributes:
        probability: for each image.
        area: least and greatest share of the image.
    """

    probability: Probability = 0.25
    area: Shares = (0.02, 1 / 3)


def _switch(value: Any) -> Any:
    return {} if value is True else value


class Augment(Part):
    """What is done at random to each training image; with nothing given, nothing: it is prepared as in evaluation.

    Attributes:
        random_resized_crop: instead of evaluation's resize and centre crop; ``true`` takes the defaults.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        color_jitter: brightness, contrast, saturation and hue.
        auto_augment: randaugment or trivialaugment.
        random_erasing: a blanked box, on the device.
    """

    random_resized_crop: Annotated[RandomResizedCrop | None, BeforeValidator(_switch)] = None
    hflip: Probability = 0.0
    vflip: Probability = 0.0
    color_jitter: ColorJitter | None = None
    auto_augment: AutoAugment | None = None
    random_erasing: RandomErasing | None = None
