"""Whether the sizes that a configuration asks for can be true, before a model of them is built.

Building a model of 3,000 blocks takes minutes, and a table for images of a million pixels takes all memory. The tensors
beside a configuration are the evidence: no model has more blocks than its file has tensors. Exact sizes are compared
when the tensors are transferred.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any, get_type_hints

from finetune.errors import ModelError, TransferError, shown
from finetune.images.spec import LARGEST

_MOST = 2**24  # of any size; the largest vocabularies have 2**18 tokens
_NUMBERS = 1000  # in a list
_WINDOW = 64  # patches along an edge of what relative positions are tabled for
_FEW = 100  # blocks that need no evidence
# The keys of transformers, timm and open_clip for sizes that are whole numbers from 1, or lists of such.
_SIZES = re.compile(
    r"(hidden|intermediate|embed|embedding|patch|image|img|input|vocab|window|projection|kernel|stem|head)_sizes?"
    r"|(decoder_)?num_(hidden_layers|attention_heads|heads|channels|stages|blocks)|depths?|heads|layers|width"
    r"|embed_dims?|projection_dim|head_width|context_length|max_position_embeddings|channels|groups"
)
_EDGES = re.compile(r"(image|img|input)_size")
_BLOCKS = re.compile(r"(.*_)?(depths?|layers|blocks|repeats|depth_coefficient)")


class ImpossibleSize(ModelError):
    """A size that no model has, or that the tensors beside it speak against."""


def check_file(config: dict[str, Any], tensors: Collection[str]) -> None:
    """Checks a configuration file's own numbers.

    Args:
        config: content of the file.
        tensors: names of all tensors beside it.

    Raises:
        ImpossibleSize: naming the first key whose value cannot be a size, or is larger than the tensors allow.
    """
    most_blocks = max(_FEW, len(tensors))
    for path, key, value in _entries(config):
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > _NUMBERS and any(isinstance(number, int | float) for number in numbers):
            raise ImpossibleSize(f"{path}: a list of {len(numbers):,} values, and no model has so many parts")
        if _SIZES.fullmatch(key) and value is not None:
            _require_sizes(path, value, LARGEST if _EDGES.fullmatch(key) else _MOST)
        amounts = [number for number in numbers if isinstance(number, int | float)]
        if any(abs(number) > 2**32 for number in amounts if isinstance(number, int)):
            raise ImpossibleSize(f"{path}: out of range; received {shown(value)}")
        if _BLOCKS.fullmatch(key) and sum(amounts) > most_blocks:
            raise ImpossibleSize(
                f"{path}: {shown(value)} blocks, but there are only {len(tensors):,} tensors: the weights are of "
                "another model"
            )


def check_config(config: Any) -> None:
    """Checks the configuration of a module, with those inside it: types as annotated, and ranges.

    Args:
        config: a family's dataclass.

    Raises:
        ImpossibleSize: naming the first field with a value that it cannot have.
    """
    for name, value, hint in _fields(config):
        if dataclasses.is_dataclass(value):
            check_config(value)
            continue
        if isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            for inner in value:
                check_config(inner)
            continue
        _require_type(name, value, hint)
        numbers = [number for number in (value if isinstance(value, tuple) else (value,)) if number is not None]
        least, most = _range(name)
        for number in numbers:
            if isinstance(number, int | float) and not isinstance(number, bool) and not least <= number <= most:
                raise ImpossibleSize(f"{name}: needs a number from {least:,} to {most:,}; received {shown(value)}")


def check_blocks(config: Any, tensors: Collection[str]) -> None:
    """Compares the number of a module's blocks with the numbered names of the tensors.

    Raises:
        ImpossibleSize: there are far fewer tensors than so many blocks have.
    """
    numbered = {name[: match.end()] for name in tensors for match in re.finditer(r"\.\d+(?=\.)", name)}
    if (blocks := _count_blocks(config)) > max(_FEW // 2, 2 * len(numbered)):
        raise ImpossibleSize(
            f"it describes {blocks:,} blocks, but the names of the tensors number only {len(numbered):,} parts: the "
            "weights are of another model"
        )


def check_shapes(config: Any, leaves: Mapping[tuple[str, ...], Any]) -> None:
    """Compares the shapes that decide how many patches there are, since the work grows with their square.

    Args:
        config: of the vision module.
        leaves: of its tree, with their shapes.

    Raises:
        TransferError: the patches are of another size, or the relative positions are of another grid.
    """
    for key, leaf in leaves.items():
        shape = tuple(leaf.shape)
        if key[-2:] == ("patch_embedding", "kernel") and len(shape) == 4 and hasattr(config, "patch_size"):
            needed = (config.patch_size, config.patch_size, *shape[2:])
        elif key[-1] == "relative_position_embedding" and hasattr(config, "bias_shape"):
            needed = config.bias_shape
        else:
            continue
        if shape != needed:
            raise TransferError(
                f"the weights do not fit the model: sizes do not: the configuration is of another size of the model:\n"
                f"  shape       {shown('/'.join(key))}: {shape} given, {needed} needed"
            )


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(dotted path, key, value) of everything in nested objects."""
    objects: list[tuple[str, dict[str, Any]]] = [("", config)]
    while objects:
        prefix, inner = objects.pop(0)
        for key, value in inner.items():
            path = f"{prefix}{key}"
            if isinstance(value, dict):
                objects.append((f"{path}.", value))
            else:
                yield shown(path), key, value


def _require_sizes(path: str, value: Any, most: int) -> None:
    for size in value if isinstance(value, list) else [value]:
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most:
            raise ImpossibleSize(f"{path}: needs a whole number from 1 to {most:,}; received {shown(repr(value))}")


def _fields(config: Any) -> list[tuple[str, Any, Any]]:
    hints = get_type_hints(type(config))
    return [(field.name, getattr(config, field.name), hints[field.name]) for field in dataclasses.fields(config)]


def _require_type(name: str, value: Any, hint: Any) -> None:
    from pydantic import ValidationError

    try:
        _validator(hint).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input ").replace("should be", "needs to be")
        raise ImpossibleSize(f"{name}: {message}; received {shown(repr(value))}") from None


@cache
def _validator(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def _range(name: str) -> tuple[float, float]:
    if name in ("dropout", "attention_dropout", "drop_path_rate"):
        return 0, 0.999
    if name == "image_size":
        return 1, LARGEST
    if name in ("window_sizes", "bias_grid", "pretrained_windows"):
        return 0, _WINDOW
    if name.endswith(("_eps", "_ratio")):
        return 1e-30, 1e4
    if name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "depths"):
        return 1, _MOST
    return (-_MOST, _MOST) if name in ("separation", "logit_scale_init_value", "logit_bias_init_value") else (0, _MOST)


def _count_blocks(config: Any) -> int:
    total = 0
    for name, value, _ in _fields(config):
        if dataclasses.is_dataclass(value):
            total += _count_blocks(value)
        elif name in ("num_hidden_layers", "depths", "blocks", "hidden_sizes"):
            total += _length(name, value)
    return total


def _length(name: str, value: Any) -> int:
    if name == "depths":
        return sum(value)
    return value if isinstance(value, int) else len(value)
