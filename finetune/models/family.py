"""What every model family tells the loader: its module, its configuration, and how each layout's files become both."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn

from finetune.errors import ModelError
from finetune.weights.layout import Layout
from finetune.weights.names import Row

Verified = Literal["features", "other image sizes", "text features", "a training step"]


@dataclass(frozen=True)
class Reading:
    """A checkpoint's configuration, understood.

    Attributes:
        config: the module's configuration, a frozen dataclass of plain values.
        names: the table from the checkpoint's tensor names to the module's tree.
    """

    config: Any
    names: Sequence[Row]


@dataclass(frozen=True)
class Reader:
    """One layout's way into a family.

    Attributes:
        layout: whose files it reads.
        kinds: regular expression of the whole ``model_type`` (transformers) or ``architecture`` (timm).
        read: (configuration as the file has it, names of the tensors) -> Reading. Raises ModelError for a variant
            that is not supported.
        processor: the image processor of transformers whose defaults hold where the files name none.
        module: what ``read`` configures, where that is not the family's own vision module: a model of two towers.
        antialias: how this layout's library resizes position embeddings (see :mod:`finetune.models.layers.positions`).
        label: ``kinds`` as people write them, where it is no plain name.
        verified: what the tests hold equal to PyTorch's values.
        any_size: the library resizes them to the images that the image processor makes, of its own accord.
    """

    layout: Layout
    kinds: str
    read: Callable[[dict[str, Any], Collection[str]], Reading]
    processor: str = ""
    module: type[nn.Module] | None = None
    antialias: bool = False
    any_size: bool = False
    label: str = ""
    verified: tuple[Verified, ...] = ()


@dataclass(frozen=True)
class Family:
    """A kind of vision model.

    Attributes:
        name: as a saved bundle names it.
        title: as people name it.
        module: ``module(config, dtype=...)``, from float32 [N, H, W, 3] to a BackboneOutput; declares ``depth_order``.
        config: the class of its configuration; has ``num_features``, and ``image_size`` where the size is fixed.
        readers: one for each layout that it comes in.
    """

    name: str
    title: str
    module: type[nn.Module]
    config: type
    readers: tuple[Reader, ...]

    def reader(self, layout: Layout, kind: str) -> Reader | None:
        return next((r for r in self.readers if r.layout == layout and re.fullmatch(r.kinds, kind)), None)


def parse_transformers(kind: str, config: dict[str, Any]) -> Any:
    """transformers' configuration class of that name, which knows what a file leaves out.

    Raises:
        ModelError: the values are not such a configuration's.
    """
    import transformers

    try:
        parsed = getattr(transformers, kind).from_dict(config)
    except Exception as error:  # its checks differ in type from version to version
        raise ModelError(f"not a {kind}: {' '.join(str(error).split())}") from None
    if getattr(parsed, "num_channels", 3) != 3:
        raise ModelError(f"num_channels: only 3 (RGB) is supported; received {parsed.num_channels}")
    return parsed


def timm_arguments(config: dict[str, Any], defaults: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What timm's model function is called with: an architecture's own arguments, then the file's ``model_args``.

    Raises:
        ModelError: ``model_args`` has an argument outside ``defaults`` and ``known``, which would be ignored.
    """
    given = config.get("model_args", {})
    unknown = sorted(given.keys() - defaults.keys() - set(known) - {"num_classes", "in_chans", "pretrained"})
    if unknown:
        raise ModelError(f"model_args: {', '.join(unknown)} not supported for {config['architecture']}")
    if given.get("in_chans", 3) != 3:
        raise ModelError(f"model_args: in_chans: only 3 (RGB) is supported; received {given['in_chans']}")
    return {**defaults, **given}
