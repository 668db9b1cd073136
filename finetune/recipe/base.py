"""What every part of a recipe has in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Base of every part: unknown keys and loose types are errors, and a part does not change once made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# Lets ``optimizer: adamw`` stand for ``optimizer: {name: adamw}``.
by_name = BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)


def locate(root: type[Part], loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], list[str]]:
    """Where one of pydantic's findings is in the document, and the keys that are valid there.

    A finding inside a choice of parts names the part that was chosen, which is no key of the document.
    """
    at: list[str | int] = []
    parts, valid = [root], list(root.model_fields)
    for key in loc:
        if isinstance(key, str) and len(parts) > 1:
            parts = [part for part in parts if _tag(part) == key]
            continue
        at.append(key)
        if isinstance(key, str) and parts:
            fields = parts[0].model_fields
            valid = list(fields)
            parts = list(_parts_in(fields[key].annotation)) if key in fields else []
    return tuple(at), valid


def _tag(part: type[Part]) -> str:
    """By which a choice of parts tells this one: its ``tag``, or its literal type or name."""
    if tag := getattr(part, "tag", None):
        return str(tag)
    field = part.model_fields.get("type") or part.model_fields["name"]
    return str(get_args(field.annotation)[0])


def _parts_in(annotation: Any) -> Iterator[type[Part]]:
    """The recipe parts inside a field's type, such as Partition in ``list[Partition]``."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts_in(inner)
