"""The model of a run: a pretrained one, or a Linen module of your own; and the head that is put on it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from finetune.recipe.base import Fraction, Part


class PretrainedConfig(Part):
    """A pretrained model: a folder, a hub id (``owner/name[@revision]``), or ``builtin:tiny-clip``."""

    tag: ClassVar[str] = "pretrained"

    source: str
    revision: str | None = None
    image_size: int | None = Field(None, ge=8, le=4096)  # edge in pixels; the checkpoint's own by default
    dropout: Fraction | None = None  # inside the backbone, in training; the checkpoint's own by default
    drop_path: Fraction | None = None  # stochastic depth, likewise: rate of the last block, rising from 0 at the first

    @property
    def origin(self) -> str:
        return self.source


class ImageConfig(Part):
    """The images that a module takes.

    Attributes:
        size: edge in pixels; the shorter edge is resized to it, and the centre cut out.
        channels: 3 for RGB, 1 for grey.
        mean, std: after scaling to [0, 1]: (image - mean) / std; one number, or one for each channel.
    """

    size: int = Field(ge=1, le=4096)
    channels: Literal[1, 3] = 3
    mean: float | list[float] = 0.0
    std: Annotated[float, Field(gt=0)] | list[Annotated[float, Field(gt=0)]] = 1.0

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> ImageConfig:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != self.channels:
                raise ValueError(f"{name}: one number, or a list of {self.channels}; received {len(value)}")
        return self


class ModuleConfig(Part):
    """A Linen module of your own, from float32 images [N, size, size, channels] to features, or to logits.

    Attributes:
        module: ``package.module:ClassName``. Code from outside of this toolkit is imported only where the person who
            runs the recipe allows it (``--allow-local-code``).
        kwargs: its attributes, plain values.
        image: what it takes.
        weights: a run's folder or model bundle with the same module, or a folder that Orbax saved its variables to;
            without it the module starts from its own initializers.
    """

    tag: ClassVar[str] = "module"

    module: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    image: ImageConfig
    weights: str | None = None

    @property
    def origin(self) -> str:
        return self.module


def _kind(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return ModuleConfig.tag if "module" in keys else PretrainedConfig.tag


BackboneConfig = Annotated[
    Annotated[PretrainedConfig, Tag("pretrained")] | Annotated[ModuleConfig, Tag("module")], Discriminator(_kind)
]


class HeadConfig(Part):
    """The layer that is put on the backbone's pooled features; ``init: none`` puts none on a module that is whole,
    whose output are the logits."""

    init: Literal["zeros", "lecun_normal", "zero_shot", "none"] = "zeros"
    templates: list[str] = Field(["a photo of a {}"])  # prompts of the zero-shot head; {} stands for the class name
    num_classes: int | None = Field(None, ge=2)  # checked against the data where given
    dropout: Fraction = 0.0

    @field_validator("templates")
    @classmethod
    def _one_place_for_the_class(cls, templates: list[str]) -> list[str]:
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise ValueError("each template needs {} once, where the class name goes")
        return templates

    @model_validator(mode="after")
    def _without_a_head_nothing_drops_out(self) -> HeadConfig:
        if self.init == "none" and self.dropout:
            raise ValueError("init: none puts on no head: give dropout to the module itself")
        return self
