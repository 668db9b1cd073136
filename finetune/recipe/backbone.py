"""The model of a run: a pretrained one, or a Linen module of your own; and its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from finetune.recipe.base import Fraction, Part


class PretrainedConfig(Part):
    """A pretrained model.

    Attributes:
        source: a folder, a hub id (``owner/name[@revision]``), or ``builtin:tiny-clip``.
        revision: branch, tag or commit of a hub repository.
        image_size: edge in pixels; by default the checkpoint's.
        dropout: rate inside the backbone, in training; by default the checkpoint's.
        drop_path: stochastic depth: rate of the last block, rising linearly from 0 at the first; by default the
            checkpoint's.
    """

    tag: ClassVar[str] = "pretrained"

    source: str
    revision: str | None = None
    image_size: int | None = Field(None, ge=8, le=4096)
    dropout: Fraction | None = None
    drop_path: Fraction | None = None

    @property
    def origin(self) -> str:
        return self.source


class ImageConfig(Part):
    """The images that a module takes.

    Attributes:
        size: edge in pixels; the shorter edge is resized to it, then the centre is cropped.
        channels: 3 for RGB, 1 for grey.
        mean: subtracted from pixels in [0, 1]; one number, or one for each channel.
        std: divides the result; one number, or one for each channel.
    """

    size: int = Field(ge=1, le=4096)
    channels: Literal[1, 3] = 3
    mean: float | list[float] = 0.0
    std: Annotated[float, Field(gt=0)] | list[Annotated[float, Field(gt=0)]] = 1.0

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> ImageConfig:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != self.channels:
                raise ValueError(f"{name}: one number, or a list of {self.channels}; received {len(value)}")
            least = 1e-4 if name == "std" else -1e4  # as ImageSpec has it
            if not all(least <= number <= 1e4 for number in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{name}: needs numbers from {least:g} to 10000; received {value}")
        return self


class ModuleConfig(Part):
    """A Linen module of your own, from float32 images [N, size, size, channels] to features, or to logits.

    Attributes:
        module: ``package.module:ClassName``. Code from outside this toolkit is imported only where the person who runs
            the recipe allows it (``--allow-local-code``).
        kwargs: its attributes, plain values.
        image: the images that it takes.
        weights: a run's folder or model bundle with the same module, or a folder that Orbax saved its variables to;
            by default the module starts from its own initializers.
    """

    tag: ClassVar[str] = "module"

    module: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    image: ImageConfig
    weights: str | None = None

    @property
    def origin(self) -> str:
        return self.module


def _tag_of(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return ModuleConfig.tag if "module" in keys else PretrainedConfig.tag


BackboneConfig = Annotated[
    Annotated[PretrainedConfig, Tag("pretrained")] | Annotated[ModuleConfig, Tag("module")], Discriminator(_tag_of)
]


class HeadConfig(Part):
    """The linear layer on the backbone's pooled features.

    Attributes:
        init: ``zeros``, ``lecun_normal``, ``zero_shot`` (from the class names, by the text tower), ``pretrained`` (the
            checkpoint's own classifier, its classes matched by name), or ``none``: no head, for a module that outputs
            logits itself.
        templates: prompts of the zero-shot head, and of stages that read class names; {} stands for the name.
        num_classes: where given, the data is checked to have so many.
        dropout: rate on the pooled features, in training.
    """

    active_defaults: ClassVar[frozenset[str]] = frozenset({"templates"})

    init: Literal["zeros", "lecun_normal", "zero_shot", "pretrained", "none"] = "zeros"
    templates: list[str] = Field(["a photo of a {}"])
    num_classes: int | None = Field(None, ge=2)
    dropout: Fraction = 0.0

    @property
    def classifies_from_the_start(self) -> bool:
        """Whether it is worth measuring before the first stage."""
        return self.init in ("zero_shot", "pretrained")

    @field_validator("templates")
    @classmethod
    def _each_has_one_place_for_the_class(cls, templates: list[str]) -> list[str]:
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise ValueError("each template needs {} once, where the class name goes")
        return templates

    def without_effect(self) -> Mapping[str, str]:
        if self.init == "none":
            return {"dropout": "with init: none, which adds no head: give dropout to the module itself"}
        return {}
