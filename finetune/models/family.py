"""What a model family declares to the loader: its module, its configuration, and a reader for each layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import flax.linen as nn

from finetune.errors import ModelError
from finetune.weights.layout import Layout
from finetune.weights.names import Row

Verified = Literal["features", "other image sizes", "text features", "logits", "a training step"]


@dataclass(frozen=True)
class Reading:
    """A checkpoint's configuration, translated.

    Attributes:
        config: the module's configuration, a frozen dataclass of plain values.
        names: the rows that map the checkpoint's tensor names to the module's tree.
        tower: the family of the vision module, where it is not the reader's own.
        defaults: path of a scalar parameter, keys separated by dots -> its value where the checkpoint leaves it out.

    A configuration with a ``vision_config`` and a ``text_config`` is one of a model with both towers.
    """

    config: Any
    names: Sequence[Row]
    tower: Family | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_text(self) -> bool:
        return hasattr(self.config, "text_config")


@dataclass(frozen=True)
class Reader:
    """Reads a family's checkpoints in one layout.

    Attributes:
        layout: the library whose files it reads.
        model_types: regular expression that matches all of ``model_type`` (transformers) or ``architecture`` (timm).
        read: (content of the configuration file, names of the tensors) -> Reading. Raises ModelError for a variant
            that is not supported.
        processor: transformers' image processor whose defaults apply where the files name none.
        module: the class of a model with both towers, for where ``read`` configures one; None where it never does.
        antialias, bilinear: how this layout's library resizes position embeddings (see
            :mod:`finetune.models.layers.positions`).
        any_size: the library resizes position embeddings to whatever size the image processor makes.
        head: regular expression of the name of a linear layer that gives logits from the pooled features, where this
            library's classifiers have one.
        label: ``model_types`` written for people, where it is not a plain name.
        verified: what the tests compare with PyTorch's values.
    """

    layout: Layout
    model_types: str
    read: Callable[[dict[str, Any], Collection[str]], Reading]
    processor: str = ""
    module: type[nn.Module] | None = None
    antialias: bool = False
    bilinear: bool = False
    any_size: bool = False
    head: str = ""
    label: str = ""
    verified: tuple[Verified, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of vision models.

    Attributes:
        name: identifies it in a saved bundle.
        title: its name in tables and messages.
        module: ``module(config, dtype=...)`` maps float32 [N, H, W, 3] to a BackboneOutput; declares ``depth_order``.
        config: the class of its configuration; has ``num_features``, and ``image_size`` where the size is fixed.
        readers: one for each layout, and for each model type that is read differently.
        license: that its published checkpoints usually have; each says its own.
        refused: pattern of ``model_type`` -> what such checkpoints are, where they are like the family's and not read.
    """

    name: str
    title: str
    module: type[nn.Module]
    config: type
    readers: tuple[Reader, ...]
    license: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)

    def reader(self, layout: Layout, model_type: str) -> Reader | None:
        return next((r for r in self.readers if r.layout == layout and re.fullmatch(r.model_types, model_type)), None)


def parse_transformers(class_name: str, config: dict[str, Any]) -> Any:
    """A ``config.json`` as transformers' configuration class, which has the defaults of what the file leaves out.

    Raises:
        ModelError: the class refuses the values, or the model takes other than RGB images.
    """
    import transformers

    try:
        parsed = getattr(transformers, class_name).from_dict(config)
    except Exception as error:  # the type depends on the version of transformers
        raise ModelError(f"not a {class_name}: {' '.join(str(error).split())}") from None
    if getattr(parsed, "num_channels", 3) != 3:
        raise ModelError(f"num_channels: only 3 (RGB) is supported; received {parsed.num_channels}")
    return parsed


def square_edge(size: Any) -> int | None:
    """The edge of a square, which is given as an int or as [height, width]; None where it is no square."""
    edges = list(size) if isinstance(size, list | tuple) else [size]
    is_square = bool(edges) and all(isinstance(edge, int) and edge == edges[0] for edge in edges)
    return edges[0] if is_square else None


def square_sizes(config: Any) -> tuple[int, int]:
    """``image_size`` and ``patch_size`` of transformers' configuration, as edges.

    Raises:
        ModelError: height and width differ.
    """
    image_size, patch_size = square_edge(config.image_size), square_edge(config.patch_size)
    if image_size is None or patch_size is None:
        received = f"image_size {config.image_size}, patch_size {config.patch_size}"
        raise ModelError(f"only square images and patches are supported; received {received}")
    return image_size, patch_size


def timm_arguments(config: dict[str, Any], defaults: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The arguments of timm's model function: the architecture's defaults, overridden by the file's ``model_args``.

    Args:
        config: content of timm's ``config.json``.
        defaults: what the architecture's name implies.
        known: further arguments that are read, or have no effect on the features.

    Raises:
        ModelError: ``model_args`` has an argument outside ``defaults`` and ``known``, or other than 3 channels.
    """
    arguments = config.get("model_args", {})
    unknown = sorted(arguments.keys() - defaults.keys() - set(known) - {"num_classes", "in_chans", "pretrained"})
    if unknown:
        raise ModelError(f"model_args: not supported for {config['architecture']}: {', '.join(unknown)}")
    if arguments.get("in_chans", 3) != 3:
        raise ModelError(f"model_args: in_chans: only 3 (RGB) is supported; received {arguments['in_chans']}")
    return {**defaults, **arguments}
