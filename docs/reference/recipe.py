"""Every key of a recipe, from its JSON Schema: type, default, meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from finetune.recipe.schema import recipe_schema
from reference import table

Schema = dict[str, Any]


def reference() -> str:
    """A section for each part of a recipe, with a table of its keys."""
    titles = {part["title"]: f"`{told[1]}`" if (told := _told_by(part)) else "keys" for _, part in parts()}
    return "\n\n".join(_section(path, part, titles) for path, part in parts())


def parts() -> Iterator[tuple[str, Schema]]:
    """(path, schema) of each part, in the order in which a recipe names them: first the recipe itself, at ``""``.

    A part that is valid in several places has the path of the first.
    """
    schema = recipe_schema()
    waiting, seen = [("", schema)], set()
    while waiting:
        path, part = waiting.pop(0)
        yield path, part
        inside = []
        for key, value in part["properties"].items():
            for name, brackets in _parts_in(value):
                if name in schema["$defs"] and name not in seen and "properties" in schema["$defs"][name]:
                    seen.add(name)
                    inside.append((f"{path}.{key}".lstrip(".") + brackets, schema["$defs"][name]))
        waiting = inside + waiting


def _parts_in(value: Any, brackets: str = "") -> Iterator[tuple[str, str]]:
    """(name, brackets) of the parts that a key takes; brackets where they are items of a list."""
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], brackets
    for choice in [*value.get("anyOf", ()), *value.get("oneOf", ())]:
        yield from _parts_in(choice, brackets)
    if "items" in value:
        yield from _parts_in(value["items"], f"{brackets}[]")


def _told_by(part: Schema) -> tuple[str, str] | None:
    """The key that tells a part from the others of a choice, and its value."""
    fields = part["properties"]
    return next(((key, fields[key]["const"]) for key in ("type", "name") if "const" in fields.get(key, ())), None)


def _section(path: str, part: Schema, titles: dict[str, str]) -> str:
    heading = f"`{path}`" if path else "The recipe"
    told = _told_by(part)
    if told:
        heading += f", `{told[0]}: {told[1]}`"
    elif path == "backbone":  # its two kinds are told by the key that they have to have
        heading += f" with `{part['required'][0]}`"
    required = part.get("required", ())
    rows = [
        [f"`{key}`", _kind(value, titles), _default(value, key in required), value["description"].removesuffix(".")]
        for key, value in part["properties"].items()
        if not told or key != told[0]
    ]
    level = "##" if "." not in path else "###"
    keys = [table(["key", "type", "default", "meaning"], rows)] if rows else []
    return "\n\n".join([f"{level} {heading} {{#{part['title']}}}", part["description"], *keys])


def _kind(value: Schema, titles: dict[str, str]) -> str:
    """A key's type in words, with links to the parts that it takes."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{titles[name]}](#{name})" if name in titles else "any value"
    if choices := [*value.get("anyOf", ()), *value.get("oneOf", ())]:
        words = [_kind(choice, titles) for choice in choices if choice.get("type") != "null" and not _is_short(choice)]
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if "const" in value or "enum" in value:
        return ", ".join(f"`{_plain(choice)}`" for choice in value.get("enum", [value.get("const")]))
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])} numbers"
    if "items" in value:
        return f"list of {_kind(value['items'], titles)}"
    if value.get("type") == "object":
        inner = value.get("additionalProperties") or next(iter(value["patternProperties"].values()))
        return f"mapping to {_kind(inner, titles)}"
    word = {"string": "text", "boolean": "true or false"}.get(value["type"], value["type"])
    return " ".join(filter(None, [word, ", ".join(_range(value))]))


def _is_short(choice: Schema) -> bool:
    """Whether it lists names alone, each of which is a part beside it."""
    return choice.keys() == {"enum"}


def _range(value: Schema) -> Iterator[str]:
    signs = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    for bound, sign in signs.items():
        if bound in value:
            yield f"{sign} {value[bound]}"


def _default(value: Schema, required: bool) -> str:
    if required:
        return "required"
    default = value.get("default")
    if default is None:
        return ""
    if isinstance(default, dict):  # of a part that is told by its name, the name says enough
        short = default.get("name") or default.get("mode")
        return f"`{short}`" if short else ("" if len(default) > 1 else f"`{_flow(default)}`")
    return f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"[{', '.join(map(_plain, value))}]" if isinstance(value, list) else json.dumps(value)


def _flow(value: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items()) + "}"
