"""The model bundle: a folder that holds all that prediction needs, and nothing that runs code.

model.json    format, backbone family and configuration, head, class names, image spec, confidence, hash of the weights
weights/      every parameter and statistic, by Orbax
novelty.safetensors    what tells unknown images by their features, where it does
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from finetune.checkpoint import find_bundle, on_this_device
from finetune.errors import CheckpointError, first_line, listed
from finetune.export.confidence import Confidence
from finetune.files import folder_written_atomically, hash_json, require_space, write_json
from finetune.foreign_errors import advice_for
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone
from finetune.models.build import build_module, describe
from finetune.models.classifier import Classifier, init_shapes
from finetune.models.heads import KnnConfig, TipAdapterConfig
from finetune.trees import hash_tree

FORMAT = 4
_NOVELTY = "novelty.safetensors"
_DIGEST = "sha256"  # of all else in model.json, which has those of the other files
_HEADS: dict[type, str] = {KnnConfig: "knn", TipAdapterConfig: "tip_adapter"}  # those that are not linear


@dataclass(frozen=True)
class Bundle:
    """A classifier ready to serve: module, variables, names of its outputs, how its images are prepared, and whether an
    image may be of several classes; and what the validation images said of its confidence, where there were some."""

    classifier: Classifier
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    image_spec: ImageSpec
    multi_label: bool = False
    confidence: Confidence | None = None


def save_bundle(
    directory: Path,
    classifier: Classifier,
    variables: Any,
    *,
    backbone: Backbone,
    class_names: tuple[str, ...],
    multi_label: bool = False,
    confidence: Confidence | None = None,
) -> str:
    """Writes the bundle, replacing an earlier one only once the new one is whole.

    Returns:
        The hash of the weights.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full.
    """
    model = {
        "format": FORMAT,
        "backbone": describe(backbone),
        "head": _describe_head(classifier),
        "class_names": list(class_names),
        "multi_label": multi_label,
        "image_spec": backbone.image_spec.to_json(),
    }
    return _write(directory, model, variables, confidence)


def save_bundle_like(directory: Path, like: Path, variables: Any, confidence: Confidence | None = None) -> str:
    """Writes a bundle that is another one but for its weights and what validation images said of them.

    Returns:
        The hash of the weights.

    Raises:
        CheckpointError: it cannot be written.
    """
    return _write(directory, json.loads((like / "model.json").read_text(encoding="utf-8")), variables, confidence)


def _write(directory: Path, model: Mapping[str, Any], variables: Any, confidence: Confidence | None) -> str:
    weights = hash_tree(variables)
    described = {"confidence": None if confidence is None else confidence.to_json(), "weights_sha256": weights}
    arrays = {} if confidence is None else dict(confidence.novelty.arrays)
    described["novelty_sha256"] = hash_tree(arrays)
    directory = directory.absolute()
    _check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    require_space(directory, sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
    with folder_written_atomically(directory) as folder:
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(folder / "weights", variables)
            if arrays:
                save_file(arrays, folder / _NOVELTY)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise CheckpointError(
                f"{directory}: cannot save the model: {first_line(error)}; {advice_for(error)}"
            ) from None
        description = {**{key: value for key, value in model.items() if key != _DIGEST}, **described}
        write_json(folder / "model.json", {**description, _DIGEST: hash_json(description)})
    return weights


def _check_replaceable(directory: Path) -> None:
    """Raises:
    CheckpointError: there is something that is no bundle, and would be lost.
    """
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise CheckpointError(f"{directory}: a file or a link has the name of the bundle's folder; move it")
    own = {"weights", _NOVELTY, "model.json"}
    if foreign := [name for name in sorted(os.listdir(directory)) if name not in own] if directory.exists() else []:
        raise CheckpointError(
            f"{directory}: cannot be replaced by a bundle: has files that are no bundle's: {listed(foreign)}; move them"
        )


def load_bundle(directory: Path, *, allow_local_code: bool = False) -> Bundle:
    """Reads a bundle onto this process's default device, whatever machine wrote it.

    Args:
        allow_local_code: import the module of your own that the bundle names, if it does.

    Raises:
        CheckpointError: not a bundle, or one whose parts are missing, damaged or do not fit each other.
        ModelError: it names a module that is not allowed, or is not there.
    """
    if directory.name == "model":
        directory = find_bundle(directory) or directory
    file = directory / "model.json"
    try:
        model = json.loads(file.read_text(encoding="utf-8"))
        if model["format"] != FORMAT:
            raise CheckpointError(f"{file}: format {model['format']}, made by another version; this one reads {FORMAT}")
        if model.pop(_DIGEST) != hash_json(model):
            raise CheckpointError(f"{file}: changed since it was written; restore it from a copy, or train again")
        spec = ImageSpec.from_json(model["image_spec"])
        module = build_module(**model["backbone"], allow_local_code=allow_local_code)
        classifier = _build_head(module, dict(model["head"]))
        class_names = tuple(model["class_names"])
        multi_label = bool(model.get("multi_label", False))
        confidence = model.get("confidence")
        if confidence is not None:
            confidence = Confidence.from_json(confidence, len(class_names), _read_novelty(directory, model))
        expected = model["weights_sha256"]
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: not a model bundle: it has no model.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a model description: {type(error).__name__}: {error}") from None
    variables = _load_weights(directory / "weights", classifier, spec)
    if hash_tree(variables) != expected:
        raise CheckpointError(f"{directory / 'weights'}: the weights are not those that model.json was written with")
    return Bundle(classifier, variables, class_names, spec, multi_label, confidence)


def _read_novelty(directory: Path, model: Mapping[str, Any]) -> dict[str, np.ndarray]:
    file = directory / _NOVELTY
    try:
        arrays = load_file(file) if file.is_file() else {}
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged: {first_line(error)}") from None
    if hash_tree(arrays) != model["novelty_sha256"]:
        raise CheckpointError(f"{file}: {'not what' if arrays else 'missing; it is what'} model.json was written with")
    return arrays


def _describe_head(classifier: Classifier) -> dict[str, Any]:
    head = {name: getattr(classifier, name) for name in ("num_classes", "pool", "dropout", "headless")}
    config: Any = classifier.head_config
    if config is None:
        return head
    return {**head, "type": _HEADS[type(config)], "config": asdict(config)}


def _build_head(module: Any, head: dict[str, Any]) -> Classifier:
    kind, config = head.pop("type", None), head.pop("config", {})
    if kind is None:
        return Classifier(module, **head)
    types = {name: head_type for head_type, name in _HEADS.items()}
    return Classifier(module, **head, head_config=types[kind](**config))


def _load_weights(folder: Path, classifier: Classifier, spec: ImageSpec) -> dict[str, Any]:
    pixels = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
    try:
        _, shapes = init_shapes(classifier, pixels)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder.absolute(), on_this_device(shapes))
    except Exception as error:  # Orbax, TensorStore, or code of your own that is another by now
        raise CheckpointError(f"{folder}: the weights cannot be read: {first_line(error)}") from None
