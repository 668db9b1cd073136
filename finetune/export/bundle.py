"""The model bundle: a folder that holds all that prediction needs, and nothing that runs code.

model.json    format, backbone family and configuration, head, class names, image spec, confidence; one digest of all
weights/      every parameter and statistic, by Orbax
novelty.safetensors    what tells unknown images by their features, where it does
README.md     the model card, for people; nothing reads it

Nothing of it is trusted: files are plain and of bounded size, the description is a strict model
(:mod:`finetune.export.description`), and the network that it describes is built only as far as the weights bear it out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from finetune.checkpoint import find_bundle, shapes_in_place, this_process_alone
from finetune.distributed.sharding import Placement
from finetune.errors import CheckpointError, FinetuneError, ModelError, first_line, listed
from finetune.export.card import CardFacts, render_card
from finetune.export.confidence import Confidence
from finetune.export.description import FORMAT, Description
from finetune.export.formats import upgrade
from finetune.export.layout import CARD, MODEL, NOVELTY, WEIGHTS
from finetune.files import folder_written_atomically, hash_json, require_space, write_json, write_text
from finetune.foreign_errors import advice_for
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone
from finetune.models.build import build_module, describe
from finetune.models.classifier import Classifier
from finetune.models.evidence import shapes_as_saved
from finetune.models.heads import KnnConfig, TipAdapterConfig
from finetune.page.facts import ShownByFacts, dimensions
from finetune.trees import count_values, flatten, hash_tree
from finetune.untrusted import read_bytes, read_json

_DIGEST = "sha256"  # of all else in model.json, which has those of the other files
_FIRST_WITH_DIGEST = 5  # format
_MOST_NOVELTY = 4 << 30  # bytes
_MOST_JSON = 2**26  # bytes of model.json, which has what a million validation images say
_HEADS: dict[type, str] = {KnnConfig: "knn", TipAdapterConfig: "tip_adapter"}  # those that are not linear


@dataclass(frozen=True, repr=False)
class Bundle(ShownByFacts):
    """A classifier ready to serve: module, variables, names of its outputs, how its images are prepared, and whether an
    image may be of several classes; and what the validation images said of its confidence, where there were some."""

    classifier: Classifier
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    image_spec: ImageSpec
    multi_label: bool = False
    confidence: Confidence | None = None

    def _facts(self) -> dict[str, Any]:
        return {
            "model": type(self.classifier.backbone).__name__,
            "parameters": count_values(self.variables["params"]),
            "images": dimensions(self.image_spec.shape),
            "classes": len(self.class_names),
            "class_names": self.class_names,
            "multi_label": self.multi_label or None,
            "calibrated": self.confidence is not None,
        }


def save_bundle(
    directory: Path,
    classifier: Classifier,
    variables: Any,
    *,
    backbone: Backbone,
    class_names: tuple[str, ...],
    multi_label: bool = False,
    confidence: Confidence | None = None,
    card: CardFacts | None = None,
) -> str:
    """Writes the bundle, replacing an earlier one only once the new one is whole.

    Args:
        card: what its model card says of how it was made; by default that says what the bundle holds.

    Returns:
        The hash of the weights.

    Raises:
        CheckpointError: its parts do not fit each other, such as other class names than the head has outputs; or it
            cannot be written, for example because the disk is full.
    """
    model = {
        "format": FORMAT,
        "backbone": describe(backbone),
        "head": _describe_head(classifier),
        "class_names": list(class_names),
        "multi_label": multi_label,
        "image_spec": backbone.image_spec.to_json(),
    }
    return _write(directory, model, variables, confidence, card)


def save_bundle_like(
    directory: Path, like: Path, variables: Any, confidence: Confidence | None = None, card: CardFacts | None = None
) -> str:
    """Writes a bundle that is another one but for its weights and what validation images said of them.

    Returns:
        The hash of the weights.

    Raises:
        CheckpointError: the other one's description is damaged, or the new one cannot be written.
    """
    return _write(directory, read_description(like).to_json(), variables, confidence, card)


def _write(
    directory: Path, model: Mapping[str, Any], variables: Any, confidence: Confidence | None, card: CardFacts | None
) -> str:
    arrays = {} if confidence is None else dict(confidence.novelty.arrays)
    described = {
        "confidence": None if confidence is None else confidence.to_json(),
        "weights_sha256": hash_tree(variables),
        "novelty_sha256": hash_tree(arrays),
    }
    directory = directory.absolute()
    _check_replaceable(directory)
    description = Description.read({**model, **described}, directory / MODEL)
    directory.parent.mkdir(parents=True, exist_ok=True)
    require_space(directory, sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
    with folder_written_atomically(directory) as folder:
        try:
            with _checkpointer() as checkpointer:
                checkpointer.save(folder / WEIGHTS, variables)
            if arrays:
                save_file(arrays, folder / NOVELTY)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise CheckpointError(
                f"{directory}: cannot save the model: {first_line(error)}; {advice_for(error)}"
            ) from None
        write_text(folder / CARD, render_card(description, card))
        data = description.to_json()
        write_json(folder / MODEL, {**data, _DIGEST: hash_json(data)})
    return description.weights_sha256


def _check_replaceable(directory: Path) -> None:
    """Raises:
    CheckpointError: there is something that is no bundle, and would be lost.
    """
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise CheckpointError(f"{directory}: a file or a link has the name of the bundle's folder; move it")
    own = {WEIGHTS, NOVELTY, MODEL, CARD}
    if foreign := [name for name in sorted(os.listdir(directory)) if name not in own] if directory.exists() else []:
        raise CheckpointError(
            f"{directory}: cannot be replaced by a bundle: has files that are no bundle's: {listed(foreign)}; move them"
        )


def load_bundle(directory: Path, *, allow_local_code: bool = False, placement: Placement | None = None) -> Bundle:
    """Reads a bundle, whatever machine and whatever earlier version wrote it.

    Args:
        allow_local_code: import the module of your own that the bundle names, if it does.
        placement: of the weights; by default on this process's first device.

    Raises:
        CheckpointError: not a bundle, one of a newer version, or one whose parts are missing, damaged or do not fit
            each other.
        ModelError: it names a module that is not allowed, or is not there.
    """
    if directory.name == "model":
        directory = find_bundle(directory) or directory
    description = read_description(directory)
    saved = _read_shapes(directory / WEIGHTS)
    classifier, shapes = _build(directory, description, saved, allow_local_code)
    confidence = _read_confidence(directory, description, saved)
    variables = _load_weights(directory / WEIGHTS, shapes, placement)
    _check_weights(variables, directory, description)
    return Bundle(
        classifier,
        variables,
        tuple(description.class_names),
        description.image_spec,
        description.multi_label,
        confidence,
    )


def verify_bundle(directory: Path) -> None:
    """Reads all of a bundle, and builds nothing of it.

    Raises:
        CheckpointError: something of it is not what was saved.
    """
    description = read_description(directory)
    if description.confidence is not None:
        _read_novelty(directory / NOVELTY, description)
    _check_weights(_load_weights(directory / WEIGHTS, _read_arrays(directory / WEIGHTS)), directory, description)


def _check_weights(variables: dict[str, Any], directory: Path, description: Description) -> None:
    if hash_tree(variables) != description.weights_sha256:
        raise CheckpointError(f"{directory / WEIGHTS}: the weights are not those that model.json was written with")


def read_description(directory: Path) -> Description:
    """What a bundle says of itself, checked against its digest and in itself, whatever format it has.

    Raises:
        CheckpointError: not a bundle, one of a newer version, or a description that is damaged.
    """
    file = directory / MODEL
    if not os.path.lexists(file):
        raise CheckpointError(f"{directory}: not a model bundle: it has no {MODEL}")
    model = read_json(file, CheckpointError, _MOST_JSON)
    try:
        version = model.get("format")
        if type(version) is not int or version < 1:
            raise ValueError(f"format: a number from 1 to {FORMAT}; received {version!r}")
        if version > FORMAT:
            raise CheckpointError(
                f"{file}: format {version}, made by a newer version of finetune; this one reads 1 to {FORMAT}: upgrade "
                "flax-finetune"
            )
        digest = model.pop(_DIGEST, None)
        if digest != hash_json(model) and (digest is not None or version >= _FIRST_WITH_DIGEST):
            raise CheckpointError(f"{file}: changed since it was written; restore it from a copy, or train again")
        return Description.read(upgrade(model), file)
    except KeyError as error:
        raise CheckpointError(f"{file}: not a model description: it has no {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a model description: {first_line(error)}") from None


def _build(
    directory: Path, description: Description, saved: Mapping[str, tuple[int, ...]], allow_local_code: bool
) -> tuple[Classifier, dict[str, Any]]:
    """The classifier that is described, and the shapes of its variables, which are those that are saved."""
    backbone, head = description.backbone, description.head
    try:
        module = build_module(backbone.family, backbone.config, allow_local_code=allow_local_code, saved=saved)
    except ModelError as error:
        raise ModelError(f"{directory / MODEL}: {error}") from None
    types: dict[str, Any] = {name: head_type for head_type, name in _HEADS.items()}
    config = None if head.type is None else types[head.type](**(head.config or {}))
    classifier = Classifier(module, head.num_classes, head.dropout, head.pool, head.headless, config)
    pixels = jax.ShapeDtypeStruct((1, *description.image_spec.shape), jnp.float32)
    try:
        return classifier, shapes_as_saved(classifier, pixels, saved)
    except Exception as error:  # the network's own code, which a wrong description leads anywhere
        raise CheckpointError(
            f"{directory}: the weights cannot be read into the network that {MODEL} describes: {first_line(error)}"
        ) from None


def _read_confidence(
    directory: Path, description: Description, saved: Mapping[str, tuple[int, ...]]
) -> Confidence | None:
    if description.confidence is None:
        return None
    arrays = _read_novelty(directory / NOVELTY, description)
    try:
        confidence = Confidence.from_json(description.confidence.model_dump(), description.head.num_classes, arrays)
    except ValueError as error:
        raise CheckpointError(f"{directory / MODEL}: not a model description: {first_line(error)}") from None
    width = confidence.novelty.num_features
    if width is not None and width != (features := _num_features(saved)):
        raise CheckpointError(f"{directory / NOVELTY}: for {width} features, and the head reads {features}")
    return confidence


def _read_novelty(file: Path, description: Description) -> dict[str, np.ndarray]:
    try:
        arrays = load(read_bytes(file, _MOST_NOVELTY, CheckpointError)) if os.path.lexists(file) else {}
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged: {first_line(error)}") from None
    if hash_tree(arrays) != description.novelty_sha256:
        raise CheckpointError(f"{file}: {'not what' if arrays else 'missing; it is what'} model.json was written with")
    if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays.values()):
        raise CheckpointError(f"{file}: has arrays that are not of finite float32 numbers")
    return arrays


def _num_features(saved: Mapping[str, tuple[int, ...]]) -> int | None:
    """Width of what the head reads; None without a head."""
    for path, axis in (("params/head/kernel", 0), ("params/head/projection", 0), ("memory/head/keys", 1)):
        if path in saved:
            return saved[path][axis]
    return None


def _describe_head(classifier: Classifier) -> dict[str, Any]:
    head = {name: getattr(classifier, name) for name in ("num_classes", "pool", "dropout", "headless")}
    config: Any = classifier.head_config
    if config is None:
        return head
    described = asdict(config)
    if isinstance(config, KnnConfig):
        described["k"] = min(config.k, config.size)  # of fewer images, all vote
    return {**head, "type": _HEADS[type(config)], "config": described}


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """``collection/path`` -> shape of every array in a folder of Orbax's."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(_read_arrays(folder)).items()}


def _read_arrays(folder: Path) -> dict[str, Any]:
    """Shape and dtype of every array in a folder of Orbax's, whose files are all regular ones."""
    try:
        for path in folder.rglob("*"):
            if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
                raise CheckpointError(f"{path}: neither a file nor a folder; weights are regular files")
        with _checkpointer() as checkpointer:
            saved = checkpointer.metadata(folder.absolute())
        return dict(getattr(saved, "item_metadata", saved))
    except FinetuneError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise _unreadable(folder, error) from None


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=this_process_alone())


def _load_weights(folder: Path, shapes: dict[str, Any], placement: Placement | None = None) -> dict[str, Any]:
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(folder.absolute(), shapes_in_place(shapes, placement))
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: BaseException) -> CheckpointError:
    reason = first_line(error).split(" See full TensorStore details")[0]
    return CheckpointError(
        f"{folder}: the weights cannot be read: a file is missing or damaged: restore it from a copy, or train again "
        f"({reason})"
    )
