"""Loading a pretrained model as a backbone: module, variables, image spec, and text tower where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from finetune.errors import ModelError, first_line, nearest
from finetune.images.spec import ImageSpec
from finetune.models.families import clip, siglip
from finetune.models.family import Family, Reader, Reading
from finetune.models.layers.positions import resize_positions
from finetune.models.registry import FAMILIES
from finetune.models.surgery import TransferReport, extract_submodule, transplant
from finetune.weights.layout import Checkpoint, open_checkpoint
from finetune.weights.locate import locate
from finetune.weights.names import apply_table
from finetune.weights.preprocessor import read_image_spec

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
_POSITIONS = ("embeddings", "position_embedding", "embedding")


@dataclass(frozen=True)
class Pretrained:
    """What a checkpoint holds, as it is.

    Attributes:
        module: Linen.
        variables: ``{"params": ..., "batch_stats": ... where it has them}``, float32.
        config: the module's configuration, a frozen dataclass.
        image_spec: how its images are prepared.
        report: where each tensor of the checkpoint went.
        folder: the checkpoint.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: Any
    image_spec: ImageSpec
    report: TransferReport
    folder: Path


@dataclass(frozen=True)
class Clip(Pretrained):
    """A whole CLIP or SigLIP: ``.module`` is a CLIPModule or SiglipModule, whose
    ``.apply(variables, input_ids, pixel_values)`` gives logits and embeddings; ``.config`` has ``vision_config`` and
    ``text_config``.
    """

    @property
    def image_projection(self) -> jax.Array:
        """float32 [num_features, width]: from pooled image features to the space that both towers share."""
        if isinstance(self.module, siglip.SiglipModule):
            return jnp.eye(self.config.vision_config.num_features)
        return self.variables["params"]["visual_projection"]["kernel"]

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer, by transformers' AutoTokenizer."""
        from transformers import AutoTokenizer

        if not any((self.folder / name).is_file() for name in _TOKENIZER_FILES):  # transformers would make an empty one
            raise ModelError(f"{self.folder}: has no tokenizer; it needs one of {', '.join(_TOKENIZER_FILES)}")
        try:
            return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"{self.folder}: its tokenizer cannot be read: {first_line(error)}") from None

    def embed_texts(self, texts: Sequence[str]) -> jax.Array:
        """Unit vectors float32 [texts, width]; longer texts are cut to the tower's length."""
        length = self.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np"
        )
        # SigLIP's tokenizers give no mask: it reads the padding too.
        features = self._text_features(self.variables, tokens["input_ids"], tokens.get("attention_mask"))
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    @cached_property
    def _text_features(self) -> Callable[..., jax.Array]:
        return jax.jit(partial(self.module.apply, method="get_text_features"))


@dataclass(frozen=True)
class Backbone:
    """A pretrained vision model without its task head.

    Attributes:
        module: Linen; ``module.apply(variables, pixel_values, train=False)`` takes float32 [N, H, W, 3] and gives a
            BackboneOutput.
        variables: ``{"params": ..., "batch_stats": ... where it has them}``, float32.
        config: the module's configuration, a frozen dataclass.
        image_spec: how its images are prepared.
        num_features: width of ``pooler_output``.
        text: the CLIP or SigLIP it was taken from, whose text tower makes zero-shot heads; None where there is none.
        report: where each tensor of the checkpoint went.
        family: the registry's name, by which a saved bundle builds the module again.
        layout: whose files the checkpoint has: transformers, timm or open_clip.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: Any
    image_spec: ImageSpec
    num_features: int
    text: Clip | None
    report: TransferReport
    family: str
    layout: str


def load_backbone(
    source: str | Path,
    *,
    revision: str | None = None,
    submodule: str | None = None,
    image_size: int | None = None,
    dtype: Any = None,
    dropout: float | None = None,
    drop_path: float | None = None,
) -> Backbone:
    """Loads the vision model of a pretrained checkpoint.

    Args:
        source: a folder in the layout of transformers, timm or open_clip; a hub id ``owner/name[@revision]``; or
            ``builtin:tiny-clip``.
        revision: branch, tag or commit of a hub id.
        submodule: path, inside a pretrained module of two towers, of the part to use; by default the vision model
            (CLIP's ``vision_model``). It has to take images.
        image_size: edge in pixels, by default the checkpoint's own. Learned positions are interpolated as the
            library that made the checkpoint does; the image spec's resize rule scales along.
        dtype: compute dtype; float32 by default. Parameters and running statistics stay float32.
        dropout: rate inside the model, in training; by default the checkpoint's own.
        drop_path: rate of stochastic depth of the last block, in training; likewise.

    Raises:
        ModelError: no checkpoint there, one that is damaged, or a kind that is not supported.
        TransferError: its tensors do not fit its configuration.
    """
    checkpoint = open_checkpoint(locate(source, revision))
    family, reader = _find(checkpoint)
    if submodule is not None and reader.module is None:
        raise ModelError(
            f"submodule: {checkpoint.folder} is a vision model alone, with no part {submodule!r} that takes images"
        )
    loaded = _load(checkpoint, family, reader, image_size, dtype or jnp.float32)
    module, variables, text, config = loaded.module, loaded.variables, None, loaded.config
    if isinstance(loaded, Clip):
        text, config = loaded, loaded.config.vision_config
        module, variables = extract_submodule(loaded.module, loaded.variables, submodule or "vision_model")
        if not isinstance(module, family.module):
            raise ModelError(f"submodule: {submodule!r} is a {type(module).__name__}, which takes no images")
    if dropout is not None or drop_path is not None:
        config = _with_rates(config, family, dropout=dropout, drop_path=drop_path)
        module = module.clone(config=config)
    return Backbone(
        module=module,
        variables=variables,
        config=config,
        image_spec=loaded.image_spec,
        num_features=config.num_features,
        text=text,
        report=loaded.report,
        family=family.name,
        layout=checkpoint.layout,
    )


def load_clip(
    source: str | Path, *, revision: str | None = None, image_size: int | None = None, dtype: Any = None
) -> Clip:
    """Loads both towers of a CLIP or SigLIP checkpoint; arguments and errors as in :func:`load_backbone`."""
    checkpoint = open_checkpoint(locate(source, revision), prefer_open_clip=True)
    family, reader = _find(checkpoint)
    if reader.module is None:  # a vision model alone
        raise ModelError(
            f"{checkpoint.folder}: not a whole CLIP: {checkpoint.file.name} says {checkpoint.kind!r}, a vision model"
        )
    loaded = _load(checkpoint, family, reader, image_size, dtype or jnp.float32)
    assert isinstance(loaded, Clip)
    return loaded


def _with_rates(config: Any, family: Family, **rates: float | None) -> Any:
    for option, rate in rates.items():
        if rate is None:
            continue
        if not 0 <= rate < 1:
            raise ModelError(f"{option}: a rate from 0 to below 1 is needed; received {rate}")
        field = "drop_path_rate" if option == "drop_path" else option
        if not hasattr(config, field):
            raise ModelError(f"{option}: {family.title} has none inside; the head's own dropout is another setting")
        config = replace(config, **{field: rate})
    return config


def _find(checkpoint: Checkpoint) -> tuple[Family, Reader]:
    for family in FAMILIES:
        reader = family.reader(checkpoint.layout, checkpoint.kind)
        if reader is not None:
            return family, reader
    field = "architecture" if checkpoint.layout == "timm" else "model_type"
    readers = [reader for family in FAMILIES for reader in family.readers if reader.layout == checkpoint.layout]
    kinds = [kind for reader in readers for kind in (reader.label or reader.kinds).split(", ")]
    guess = nearest(checkpoint.kind, kinds) if checkpoint.layout == "transformers" else ""
    raise ModelError(
        f"{checkpoint.file}: {field} {checkpoint.kind!r} is not supported{guess}; supported: {', '.join(kinds)}"
    )


def _load(checkpoint: Checkpoint, family: Family, reader: Reader, image_size: int | None, dtype: Any) -> Pretrained:
    reading = _read(checkpoint, reader)
    vision = getattr(reading.config, "vision_config", reading.config)
    native = getattr(vision, "image_size", None)
    if image_size is not None and image_size < 1:
        raise ModelError(f"image_size: needs at least one pixel; received {image_size}")
    spec = read_image_spec(checkpoint, processor=reader.processor, native=native, size=image_size)
    _check_size(checkpoint, reader, spec, native, image_size)
    kind = reader.module or family.module
    variables, report = _read_tensors(checkpoint, reading, _shapes(checkpoint, kind(reading.config), spec, native))
    config = reading.config
    if native not in (None, spec.height):
        resized = replace(vision, image_size=spec.height)
        config = resized if config is vision else replace(config, vision_config=resized)
        path = ("params", *(() if config is resized else ("vision_model",)), *_POSITIONS)
        variables = _with_positions(variables, path, vision, resized.grid, reader.antialias)
        report = replace(report, resized=("/".join(path),))
    whole = Pretrained if reader.module is None else Clip
    return whole(kind(config, dtype=dtype), variables, config, spec, report, checkpoint.folder)


def _read(checkpoint: Checkpoint, reader: Reader) -> Reading:
    try:
        return reader.read(checkpoint.config, checkpoint.tensors.keys())
    except ModelError as error:
        if str(checkpoint.folder) in str(error):  # from the tensors' files, which name themselves
            raise
        raise ModelError(f"{checkpoint.file}: {error}") from None
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"{checkpoint.file}: no model can be built from it: {cause}") from None


def _check_size(
    checkpoint: Checkpoint, reader: Reader, spec: ImageSpec, native: int | None, image_size: int | None
) -> None:
    made = f"{spec.height}x{spec.width}"
    if min(spec.height, spec.width) < 1:
        raise ModelError(f"{checkpoint.folder}: no image has {made} pixels")
    if native is None:
        return
    if (spec.height, spec.width) != (native, native) and image_size is None and not reader.any_size:
        raise ModelError(
            f"{checkpoint.folder}: its image processor makes images of {made}; {checkpoint.file.name} says "
            f"{native}x{native}; name the size that is wanted (image_size)"
        )
    if spec.height != spec.width:
        raise ModelError(f"{checkpoint.folder}: only square images are supported; its files say {made}")


def _shapes(checkpoint: Checkpoint, module: nn.Module, spec: ImageSpec, native: int | None) -> Any:
    """The variables that a configuration asks for, as shapes."""
    height, width = (native, native) if native else (spec.height, spec.width)
    pixels = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    towers = isinstance(module, clip.CLIPModule | siglip.SiglipModule)
    inputs = (jax.ShapeDtypeStruct((1, 2), jnp.int32), pixels) if towers else (pixels,)
    try:
        return jax.eval_shape(module.init, jax.random.key(0), *inputs)
    except ModelError as error:
        raise ModelError(f"{checkpoint.file}: {error}") from None
    except Exception as error:  # whatever a value of another type or size leads to
        raise ModelError(f"{checkpoint.file}: no model can be built from it: {first_line(error)}") from None


def _read_tensors(checkpoint: Checkpoint, reading: Reading, shapes: Any) -> tuple[dict[str, Any], TransferReport]:
    tensors = checkpoint.tensors
    named = apply_table(tensors, reading.names)
    if not named.leaves:
        raise ModelError(
            f"{checkpoint.folder}: none of its {len(named.unknown)} tensors belong to the model its "
            f"{checkpoint.file.name} names"
        )
    source = unflatten_dict(named.leaves)
    names = dict(named.names)
    for name in named.unknown:  # no row of the table knows it: let the transplant report it with all else
        source.setdefault("unknown", {})[name] = tensors[name]
        names["unknown", name] = name
    variables, report = transplant(source, shapes, names=names)
    return variables, TransferReport(report.transferred, report.fresh, named.dropped)


def _with_positions(
    variables: dict[str, Any], path: tuple[str, ...], config: Any, grid: int, antialias: bool
) -> dict[str, Any]:
    if grid < 1:
        raise ModelError(f"image_size: smaller than one patch of {config.patch_size} pixels")
    flat = flatten_dict(variables)
    table = resize_positions(np.asarray(flat[path]), config.position_prefix, grid, antialias=antialias)
    return unflatten_dict({**flat, path: jnp.asarray(table)})
