"""The JSON Schema of a recipe, for editors that check and complete YAML as it is written."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from finetune.recipe.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe file, with the documentation of every option.

    It knows the keys, types, ranges and short forms; what only holds for several options together is checked by
    :func:`load_recipe`. In an editor with a YAML language server the first line of a recipe names the file that holds
    the schema: ``# yaml-language-server: $schema=recipe.schema.json``.
    """
    schema = Recipe.model_json_schema(schema_generator=_Documented)
    schema["required"].remove("name")  # the file's name by default
    return {"$schema": _Documented.schema_dialect, **schema}


class _Documented(GenerateJsonSchema):
    """Takes descriptions from the docstrings of the recipe's parts."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        result["description"] = _words(inspect.getdoc(schema["cls"]) or "").partition("Attributes:")[0].strip()
        attributes = dict(_attributes(schema["cls"]))
        for name, value in result.get("properties", {}).items():
            if name in attributes:
                value["description"] = attributes[name]
        if "const" in result.get("properties", {}).get("name", ()):  # tells the part from the others of a choice
            result["required"] = ["name", *result.get("required", ())]
        return result

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _attributes(part: type) -> Iterator[tuple[str, str]]:
    """(name, documentation) from the ``Attributes:`` section of a class and of its bases, the class's last."""
    for cls in reversed(part.__mro__):
        section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
        for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
            yield from ((name, _words(text)) for name in names.split(", "))


def _words(text: str) -> str:
    """Plain text on one line."""
    return " ".join(re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "`").split())
