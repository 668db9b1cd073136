"""The public names, their signatures and the recipe's schema are those that are written down, so that a change of any
of them is seen and meant. ``python tests/test_public_api.py`` writes down what there is now."""

from __future__ import annotations

import inspect
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
from pydantic import BaseModel

import finetune
from finetune.recipe.schema import recipe_schema

HERE = Path(__file__).parent
API, SCHEMA = HERE / "public_api.txt", HERE / "recipe_schema.json"


def test_public_names_and_signatures_are_those_written_down():
    assert public_api().splitlines() == API.read_text(encoding="utf-8").splitlines()


def test_the_recipe_schema_is_the_one_written_down():
    assert recipe_schema() == json.loads(SCHEMA.read_text(encoding="utf-8"))


def public_api() -> str:
    """One line for each public name and for each public member of a class, sorted by name."""
    lines = []
    for name in sorted(finetune.__all__):
        value = getattr(finetune, name)
        lines.append(f"{name}{signature(value)}" if callable(value) else f"{name}: {type(value).__name__}")
        lines += [f"{name}.{method}" for method in sorted(methods(value))] if inspect.isclass(value) else []
    return "\n".join(lines) + "\n"


def methods(cls: type) -> list[str]:
    """Methods and properties written in the class itself; what dataclasses, Linen and pydantic add is theirs."""
    if issubclass(cls, BaseModel):
        return []
    written = []
    for name, member in vars(cls).items():
        if name.startswith("_") or name == "setup":
            continue
        if isinstance(member, property | cached_property):
            written.append(name)
        elif getattr(member, "__module__", None) == cls.__module__:
            written.append(f"{name}{signature(getattr(cls, name))}")
    return written


def signature(function: Any) -> str:
    """As in the code. Of a part of a recipe the names alone: types and defaults are in the schema."""
    if inspect.isclass(function) and issubclass(function, BaseModel):
        return f"(*, {', '.join(function.model_fields)})"
    if inspect.isclass(function) and issubclass(function, BaseException):
        return "(message)"
    stated = inspect.signature(function)
    if inspect.isclass(function) and issubclass(function, nn.Module):
        own = [value for name, value in stated.parameters.items() if name not in ("parent", "name")]
        stated = stated.replace(parameters=own)
    return str(stated)


if __name__ == "__main__":
    API.write_text(public_api(), encoding="utf-8")
    SCHEMA.write_text(json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
