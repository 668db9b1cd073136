"""What all parts of a recipe have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

KeyPath = tuple[str | int, ...]


def _fits_a_file_name(name: str) -> str:
    if len(name) > 100:
        raise ValueError(f"a name has at most 100 characters; this has {len(name):,}")
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), AfterValidator(_fits_a_file_name)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Base of every part: unknown keys and loose types are errors, and a part does not change once made.

    An option that has no effect beside the others is an error where a recipe asks for it, and is left out where a
    recipe is saved. ``without_effect`` names such options for both.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    # Options whose default asks for something, so that writing it where it has no effect is a mistake as well.
    active_defaults: ClassVar[frozenset[str]] = frozenset()

    def without_effect(self) -> Mapping[str, str]:
        """Dotted key of an option inside this part that has no effect beside the others -> in which case, and what to
        do: the words that follow "has no effect"."""
        return {}

    def has_default(self, name: str) -> bool:
        """Whether a field has its default value, written or not."""
        return bool(getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True))

    def asks_for(self, name: str) -> bool:
        """Whether a field was written with a value that asks for something."""
        if name in self.active_defaults:
            return name in self.model_fields_set and bool(getattr(self, name))
        return name in self.model_fields_set and not self.has_default(name)

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        messages = {}
        for dotted, case in self.without_effect().items():
            *above, name = split_key(dotted)
            if _follow(self, above).asks_for(str(name)):
                messages[dotted] = f"has no effect {case}"
        if messages:
            raise mistakes(self, messages)
        return self

    @model_serializer(mode="wrap")
    def _leave_out_options_without_effect(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = serialize(self)
        for dotted in self.without_effect():
            *above, name = split_key(dotted)
            if _follow(self, above).has_default(str(name)):
                _follow(data, above).pop(name, None)
        return data


def mistakes(part: Part, messages: Mapping[str, str]) -> ValidationError:
    """The error for a part's validator to raise: what is wrong, by the dotted key inside the part where it is."""
    details = []
    for dotted, message in messages.items():
        keys = split_key(dotted)
        error = PydanticCustomError("mistake", "{message}", {"message": message})
        details.append(InitErrorDetails(type=error, loc=keys, input=_follow(part, keys)))
    return ValidationError.from_exception_data(type(part).__name__, details)


def split_key(dotted: str) -> KeyPath:
    """``stages.0.name`` as keys and positions."""
    return tuple(int(key) if key.isdecimal() and len(key) < 10 else key for key in dotted.split("."))


def _follow(node: Any, keys: KeyPath | list[str | int]) -> Any:
    """What is at a path below a part, or below what it was written as."""
    for key in keys:
        node = getattr(node, str(key)) if isinstance(node, Part) else node[key]
    return node


class ByName:
    """Lets ``optimizer: adamw`` stand for ``optimizer: {name: adamw}``, in validation and in the JSON Schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: {"name": value} if isinstance(value, str) else value, handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        choice = handler(schema)
        parts = [handler.resolve_ref_schema(part) for part in choice["oneOf"]]
        names = [part["properties"]["name"]["const"] for part in parts if not set(part.get("required", ())) - {"name"}]
        return {"anyOf": [{"enum": names}, choice]}


def locate(root: type[Part], loc: KeyPath) -> tuple[KeyPath, list[str]]:
    """Where one of pydantic's errors is in the document, and the keys that are valid there.

    The location of an error inside a choice of parts names the part that was chosen, which is no key of the document.
    """
    at: list[str | int] = []
    parts, valid = [root], list(root.model_fields)
    for key in loc:
        choice = len(parts) > 1 or any(hasattr(part, "tag") for part in parts)
        if isinstance(key, str) and choice and (chosen := [part for part in parts if _tag(part) == key]):
            parts = chosen
            continue
        at.append(key)
        if isinstance(key, str) and parts:
            fields = next((part.model_fields for part in parts if key in part.model_fields), parts[0].model_fields)
            valid = list(fields)
            parts = list(_parts_in(fields[key].annotation)) if key in fields else []
    return tuple(at), valid


def takes_text(root: type[Part], keys: KeyPath) -> bool:
    """Whether the value at a path is a text, whatever it looks like: a folder called 2024 is no number."""
    annotations: list[Any] = [root]
    for key in keys:
        parts = [part for annotation in annotations for part in _parts_in(annotation)]
        if isinstance(key, str):
            values = [value for annotation in annotations for value in _values_of(annotation)]
            annotations = [part.model_fields[key].annotation for part in parts if key in part.model_fields] or values
        else:
            annotations = [item for annotation in annotations for item in _items_of(annotation)]
    kinds = {kind for annotation in annotations for kind in _scalars_in(annotation)}
    return bool(kinds) and kinds <= {str, type(None)} and str in kinds


def _items_of(annotation: Any) -> Iterator[Any]:
    """The types of the items of the lists inside a field's type."""
    if get_origin(annotation) is list:
        yield from get_args(annotation)
    else:
        for inner in get_args(annotation):
            yield from _items_of(inner)


def _values_of(annotation: Any) -> Iterator[Any]:
    """The type of the values of a field that is a dict."""
    if get_origin(annotation) is dict:
        yield get_args(annotation)[1]


def _scalars_in(annotation: Any) -> Iterator[Any]:
    """The types of values, other than lists, inside a field's type; text for choices among words."""
    origin = get_origin(annotation)
    if origin is list:
        return
    if origin is Literal:
        yield from (type(choice) for choice in get_args(annotation))
    elif origin is Annotated:
        yield from _scalars_in(get_args(annotation)[0])
    elif get_args(annotation):
        for inner in get_args(annotation):
            yield from _scalars_in(inner)
    else:
        yield annotation


def _tag(part: type[Part]) -> str | None:
    """What tells a part from the others of a choice: its ``tag``, or its literal type or name."""
    if tag := getattr(part, "tag", None):
        return str(tag)
    field = part.model_fields.get("type") or part.model_fields.get("name")
    literals = get_args(field.annotation) if field else ()
    return str(literals[0]) if literals else None


def _parts_in(annotation: Any) -> Iterator[type[Part]]:
    """The recipe parts inside a field's type, such as Partition in ``list[Partition]``."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts_in(inner)
