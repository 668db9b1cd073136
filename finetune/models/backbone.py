"""Loading a pretrained model as a backbone: module, variables, image spec, and text tower where there is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from finetune.data.image_spec import ImageSpec
from finetune.errors import ModelError, first_line, nearest
from finetune.models import clip
from finetune.models.surgery import TransferReport, extract_submodule, transplant
from finetune.weights.locate import locate
from finetune.weights.names import apply_table
from finetune.weights.tensors import TensorFolder

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class Clip:
    """A whole CLIP.

    Attributes:
        module: CLIPModule; ``.apply(variables, input_ids, pixel_values)`` gives logits and embeddings.
        variables: ``{"params": ...}``, float32.
        config: transformers' CLIPConfig.
        image_spec: how its images are prepared.
        report: where each tensor of the checkpoint went.
        folder: the checkpoint.
    """

    module: clip.CLIPModule
    variables: dict[str, Any]
    config: Any
    image_spec: ImageSpec
    report: TransferReport
    folder: Path

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer, by transformers' AutoTokenizer."""
        from transformers import AutoTokenizer

        if not any((self.folder / name).is_file() for name in _TOKENIZER_FILES):  # transformers would make an empty one
            raise ModelError(f"{self.folder}: has no tokenizer; it needs one of {', '.join(_TOKENIZER_FILES)}")
        try:
            return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{self.folder}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from None

    def embed_texts(self, texts: Sequence[str]) -> jax.Array:
        """Unit vectors float32 [texts, projection_dim]; longer texts are cut to the tower's length."""
        length = self.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np"
        )
        features = self._text_features(self.variables, tokens["input_ids"], tokens["attention_mask"])
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
        variables: ``{"params": ..., "batch_stats": ... where it has them}``.
        config: transformers' configuration of the vision model.
        image_spec: how its images are prepared.
        num_features: width of ``pooler_output``.
        text: the CLIP it was taken from, whose text tower makes zero-shot heads; None where there is none.
        report: where each tensor of the checkpoint went.
        family: the registry's name, by which a saved bundle builds the module again.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: Any
    image_spec: ImageSpec
    num_features: int
    text: Clip | None
    report: TransferReport
    family: str


class Family(Protocol):
    """What the registry knows of one kind of model."""

    def __call__(self, folder: Path, config: dict[str, Any], dtype: Any, submodule: str | None) -> Backbone: ...


def load_backbone(
    source: str | Path,
    *,
    revision: str | None = None,
    submodule: str | None = None,
    image_size: int | None = None,
    dtype: Any = None,
) -> Backbone:
    """Loads the vision model of a pretrained checkpoint.

    Args:
        source: a folder in transformers' layout, a hub id, or ``builtin:tiny-clip``.
        revision: branch, tag or commit of a hub id.
        submodule: path, inside the whole pretrained module, of the part to use; by default the vision model
            (CLIP's ``vision_model``). It has to take images.
        image_size: edge in pixels; only the checkpoint's own is possible so far.
        dtype: compute dtype; float32 by default. Parameters stay float32.

    Raises:
        ModelError: no checkpoint there, one that is damaged, or a kind that is not supported.
        TransferError: its tensors do not fit its configuration.
    """
    folder, config = _checkpoint(source, revision)
    backbone = _family(folder, config)(folder, config, dtype or jnp.float32, submodule)
    own = backbone.image_spec.height
    if image_size not in (None, own):
        raise ModelError(f"image_size: {folder} works on {own} pixels, and other sizes are not supported; leave it out")
    return backbone


def load_clip(source: str | Path, *, revision: str | None = None, dtype: Any = None) -> Clip:
    """Loads both towers of a CLIP checkpoint; arguments and errors as in :func:`load_backbone`."""
    folder, config = _checkpoint(source, revision)
    if config["model_type"] != "clip":
        raise ModelError(
            f"{folder}: not a whole CLIP: config.json says model_type {config['model_type']!r}, not 'clip'"
        )
    return _read_clip(folder, config, dtype or jnp.float32)


def build_module(family: str, config: dict[str, Any]) -> nn.Module:
    """The vision module of a saved bundle, from its family and configuration."""
    if family not in _MODULES:
        raise ModelError(f"unknown model family {family!r}; supported: {', '.join(_MODULES)}")
    return _MODULES[family](config)


def _checkpoint(source: str | Path, revision: str | None) -> tuple[Path, dict[str, Any]]:
    folder = locate(source, revision)
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{folder / 'config.json'}: has no model_type; supported: {', '.join(_FAMILIES)}")
    return folder, config


def _family(folder: Path, config: dict[str, Any]) -> Family:
    kind = config["model_type"]
    if kind not in _FAMILIES:
        raise ModelError(
            f"{folder / 'config.json'}: model_type {kind!r} is not supported{nearest(kind, _FAMILIES)}; "
            f"supported: {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[kind]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{file.parent}: not a checkpoint: it has no {file.name}; give a folder that save_pretrained wrote"
        ) from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file}: needs a JSON object; received {type(data).__name__}")
    return data


def _parse(kind: Any, config: dict[str, Any], folder: Path) -> Any:
    """transformers' configuration of one kind; its checks differ in type from version to version."""
    try:
        return kind.from_dict(config)
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'}: not a {kind.__name__}: {' '.join(str(error).split())}") from None


def _pixels(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def _shapes(module: nn.Module, folder: Path, *inputs: jax.ShapeDtypeStruct) -> Any:
    """The variables that a configuration asks for, as shapes."""
    try:
        return jax.eval_shape(module.init, jax.random.key(0), *inputs)
    except ModelError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from None
    except Exception as error:  # whatever a value of another type or size leads to
        raise ModelError(f"{folder / 'config.json'}: no model can be built from it: {first_line(error)}") from None


def _read_clip(folder: Path, config: dict[str, Any], dtype: Any) -> Clip:
    parsed = _parse(clip.CLIPConfig, config, folder)
    module = clip.CLIPModule(parsed, dtype=dtype)
    size = parsed.vision_config.image_size
    shapes = _shapes(module, folder, jax.ShapeDtypeStruct((1, 2), jnp.int32), _pixels(size))
    variables, report = _read_tensors(folder, clip.NAMES, shapes)
    return Clip(module, variables, parsed, _image_spec(folder, size), report, folder)


def _clip_backbone(folder: Path, config: dict[str, Any], dtype: Any, submodule: str | None) -> Backbone:
    whole = _read_clip(folder, config, dtype)
    module, variables = extract_submodule(whole.module, whole.variables, submodule or "vision_model")
    _check_takes_images(module, submodule)
    vision = whole.config.vision_config
    return Backbone(
        module, variables, vision, whole.image_spec, vision.hidden_size, whole, whole.report, "clip_vision_model"
    )


def _check_takes_images(module: nn.Module, submodule: str | None) -> None:
    if not isinstance(module, clip.CLIPVisionTransformer):
        raise ModelError(f"submodule: {submodule!r} is a {type(module).__name__}, which takes no images")


def _clip_vision_backbone(folder: Path, config: dict[str, Any], dtype: Any, submodule: str | None) -> Backbone:
    if submodule is not None:
        raise ModelError(f"submodule: {folder} is a vision model alone, with no part {submodule!r} that takes images")
    parsed = _parse(clip.CLIPVisionConfig, config, folder)
    module = clip.CLIPVisionTransformer(parsed, dtype=dtype)
    size = parsed.image_size
    shapes = _shapes(module, folder, _pixels(size))
    variables, report = _read_tensors(folder, clip.VISION_NAMES, shapes)
    spec = _image_spec(folder, size)
    return Backbone(module, variables, parsed, spec, parsed.hidden_size, None, report, "clip_vision_model")


_FAMILIES: dict[str, Family] = {"clip": _clip_backbone, "clip_vision_model": _clip_vision_backbone}
_MODULES: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "clip_vision_model": lambda config: clip.CLIPVisionTransformer(clip.CLIPVisionConfig.from_dict(config))
}


def _read_tensors(folder: Path, table: Any, shapes: Any) -> tuple[dict[str, Any], TransferReport]:
    tensors = TensorFolder(folder)
    named = apply_table(tensors, table)
    if not named.leaves:
        raise ModelError(
            f"{folder}: none of its {len(named.unknown)} tensors belong to the model its config.json names"
        )
    source = unflatten_dict(named.leaves)
    names = dict(named.names)
    for name in named.unknown:  # no row of the table knows it: let the transplant report it with all else
        source.setdefault("unknown", {})[name] = tensors[name]
        names["unknown", name] = name
    variables, report = transplant(source, shapes, names=names)
    return variables, TransferReport(report.transferred, report.fresh, named.dropped)


def _image_spec(folder: Path, size: int) -> ImageSpec:
    file = folder / "preprocessor_config.json"
    whole = folder / "processor_config.json"  # where transformers 5 keeps it when a whole processor is saved
    if not file.is_file() and whole.is_file() and "image_processor" in (settings := _read_json(whole)):
        return ImageSpec.from_preprocessor(settings["image_processor"], str(whole))
    if file.is_file():
        spec = ImageSpec.from_preprocessor(_read_json(file), str(file))
        if (spec.height, spec.width) != (size, size):
            raise ModelError(f"{file}: makes images of {spec.height}x{spec.width}; config.json says {size}x{size}")
        return spec
    return ImageSpec(size, size, size, "bicubic", clip.MEAN, clip.STD)
