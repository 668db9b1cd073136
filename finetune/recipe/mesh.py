"""The mesh of a run: how its devices are arranged, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from finetune.recipe.base import Part, mistakes
from finetune.recipe.patterns import check_pattern

Axis = Literal["data", "fsdp", "tensor"]
AXES: tuple[Axis, ...] = ("data", "fsdp", "tensor")
AUTO: Literal["auto"] = "auto"


def _tag_of(value: Any) -> str | None:
    if isinstance(value, str):
        return AUTO if value == AUTO else None
    return MeshConfig.tag if isinstance(value, Mapping | MeshConfig) else None


class MeshConfig(Part):
    """The number of devices along each axis; one may be -1, for all that the others leave.

    Attributes:
        data: parts of the batch, each with a copy of the parameters.
        fsdp: parts of the batch, and of every large parameter, its optimizer state and its average.
        tensor: parts of the layers of attention and MLP, which compute on the same images.
        rules: exceptions: a regular expression for whole parameter paths -> the axis of the mesh along each axis of the
            parameter, null for none. The first that matches counts.
    """

    tag: ClassVar[str] = "axes"

    data: int = Field(-1, ge=-1)
    fsdp: int = Field(1, ge=-1)
    tensor: int = Field(1, ge=-1)
    rules: dict[str, list[Axis | None]] = Field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    def without_effect(self) -> Mapping[str, str]:
        axes = {axis for axes in self.rules.values() for axis in axes}
        unused = sorted(str(axis) for axis in axes if axis is not None and self.sizes[axis] == 1)
        return {"rules": f"along {unused[0]}, which has one device: give it more, or leave it out"} if unused else {}

    @field_validator("rules")
    @classmethod
    def _are_patterns(cls, rules: dict[str, list[Axis | None]]) -> dict[str, list[Axis | None]]:
        for pattern in rules:
            check_pattern(pattern)
        return rules

    @model_validator(mode="after")
    def _has_sizes(self) -> MeshConfig:
        zero = [axis for axis, size in self.sizes.items() if size == 0]
        if zero:
            raise mistakes(self, {zero[0]: "a number of devices, or -1 for all that are left"})
        open_ended = [axis for axis, size in self.sizes.items() if size == -1]
        if len(open_ended) > 1:
            raise mistakes(self, {open_ended[1]: f"{' and '.join(open_ended)} cannot both take what is left"})
        return self


MeshChoice = Annotated[
    Annotated[MeshConfig, Tag(MeshConfig.tag)] | Annotated[Literal["auto"], Tag(AUTO)],
    Discriminator(
        _tag_of,
        custom_error_type="mesh",
        custom_error_message="give the number of devices along each axis, such as {data: -1, fsdp: 2}, or auto",
    ),
]
