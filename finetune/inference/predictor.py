"""Predictions from a run's folder or a model bundle alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from finetune.checkpoint import RunCheckpoints, find_bundle
from finetune.distributed.sharding import Placement, on_all_devices
from finetune.errors import CheckpointError
from finetune.export.bundle import Bundle, load_bundle
from finetune.export.confidence import SET_KINDS, Confidence, SetKind
from finetune.export.novelty import Novelty
from finetune.images.open import ImageLike, open_image
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier, head_paths
from finetune.page.facts import ShownByFacts
from finetune.remote import local_folder
from finetune.trees import merge

_LARGEST_BATCH = 64


@dataclass(frozen=True, repr=False)
class Prediction(ShownByFacts):
    """What one image shows.

    Attributes:
        label, index: of the most probable class.
        probabilities: of every class, by name; they sum to one unless an image may be of several classes.
        labels: the most probable class; where an image may be of several, all those above their thresholds, which the
            validation images chose, or above one half.
        unknown: the image looks less like those of any class than 95% of the validation images did (see
            :class:`finetune.export.novelty.Novelty`); None where the model has seen no validation images.
        set: with a coverage asked for, the classes that hold the true one so often; may be empty. Else None.
        accepted: with a greatest error asked for, whether the answer is sure enough for it. Else None.
    """

    label: str
    index: int
    probabilities: dict[str, float]
    labels: tuple[str, ...]
    unknown: bool | None = None
    set: tuple[str, ...] | None = None
    accepted: bool | None = None

    @property
    def confidence(self) -> float:
        """The probability of ``label``."""
        return self.probabilities[self.label]

    def _facts(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "confidence": round(self.confidence, 4),
            "labels": self.labels if self.labels != (self.label,) else None,
            "unknown": self.unknown,
            "set": self.set,
            "accepted": self.accepted,
        }


class Predictor(ShownByFacts):
    """A restored classifier.

    Attributes:
        model: the Linen module.
        variables: its parameters and statistics.
        class_names: in the order of the outputs.
        image_spec: how images are prepared, the same as in training.
        multi_label: an image may be of several classes.
        confidence: what the validation images said: its calibration is part of all probabilities. None without any.
        placement: of the variables; images are divided among its devices.
    """

    def __init__(self, bundle: Bundle, placement: Placement | None = None) -> None:
        """``placement``: by default, all devices of this process have all variables."""
        self.placement = placement or on_all_devices()
        self.model: Classifier = bundle.classifier
        self.variables: dict[str, Any] = self.placement.put(bundle.variables)
        self.class_names: tuple[str, ...] = bundle.class_names
        self.image_spec: ImageSpec = bundle.image_spec
        self.multi_label: bool = bundle.multi_label
        self.confidence: Confidence | None = bundle.confidence

    def _facts(self) -> Mapping[str, Any]:
        parts = self.model, self.variables, self.class_names, self.image_spec, self.multi_label, self.confidence
        return Bundle(*parts)._facts()

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled program and the devices; a copy in another process has its own."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("_forward", "placement")}
        return {**state, "variables": jax.device_get(self.variables)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.placement = on_all_devices()
        self.variables = self.placement.put(self.variables)

    def predict(
        self,
        images: Iterable[ImageLike],
        *,
        coverage: float | None = None,
        sets: SetKind = "lac",
        max_error: float | None = None,
    ) -> list[Prediction]:
        """One prediction an image.

        Args:
            images: as in :meth:`predict_proba`.
            coverage: asks for sets of classes that hold the true one so often, in (0, 1).
            sets: their kind; see :meth:`finetune.export.confidence.Confidence.sets`.
            max_error: asks which answers to accept, so that at most such a share of those is wrong, in (0, 1); see
                :meth:`finetune.export.confidence.Confidence.acceptance_threshold`.

        Raises:
            CheckpointError: coverage or max_error is asked for, and the model has seen no validation images, or images
                of it have several labels.
            ValueError: a share outside of (0, 1), or another kind of sets.
            DataError, TypeError: as in :meth:`predict_proba`.
        """
        if sets not in SET_KINDS:
            raise ValueError(f"sets: one of {', '.join(SET_KINDS)}; received {sets!r}")
        for option, share in (("coverage", coverage), ("max_error", max_error)):
            if share is not None:
                self._check_promise(option, share)
        probabilities, novelties = self._run(images)
        count, confidence = len(probabilities), self.confidence
        unknown: list[bool | None] = [None] * count
        members: list[tuple[str, ...] | None] = [None] * count
        accepted: list[bool | None] = [None] * count
        if confidence is not None:
            unknown = (novelties > confidence.novelty_threshold).tolist()
            if coverage is not None:
                rows = confidence.sets(probabilities, coverage, sets)
                members = [self._names(np.flatnonzero(row)) for row in rows]
            if max_error is not None:
                accepted = (probabilities.max(1) >= confidence.acceptance_threshold(max_error)).tolist()
        return [self._prediction(*each) for each in zip(probabilities, unknown, members, accepted, strict=True)]

    def _check_promise(self, option: str, share: float) -> None:
        """Raises for what validation images cannot promise."""
        if not 0 < share < 1:
            raise ValueError(f"{option}: a share between 0 and 1; received {share}")
        if self.confidence is None:
            raise CheckpointError(
                f"{option}: the model has seen no validation images, which it is measured on; give the recipe some: "
                "data.validation"
            )
        if self.multi_label:
            raise CheckpointError(f"{option}: is for images of one class; this model's may be of several")
        if option == "max_error" and not len(self.confidence.certainties):
            raise CheckpointError(
                f"{option}: an earlier version saved the model, without what this is measured on; train it again"
            )

    def _prediction(
        self, row: np.ndarray, unknown: bool | None, members: tuple[str, ...] | None, accepted: bool | None
    ) -> Prediction:
        index = int(row.argmax())
        chosen = np.array([index])
        if self.multi_label:
            thresholds = 0.5 if self.confidence is None else self.confidence.thresholds
            chosen = np.flatnonzero(row > thresholds)
        probabilities = dict(zip(self.class_names, row.tolist(), strict=True))
        label = self.class_names[index]
        return Prediction(label, index, probabilities, self._names(chosen), unknown, members, accepted)

    def _names(self, indices: np.ndarray) -> tuple[str, ...]:
        return tuple(self.class_names[int(i)] for i in indices)

    def predict_proba(self, images: Iterable[ImageLike]) -> np.ndarray:
        """Class probabilities, float32 [N, num_classes], rows in the order given.

        Args:
            images: paths, PIL images, encoded bytes, or uint8 arrays [H, W] or [H, W, 3], of any sizes; in a list, an
                array [N, H, W, 3] or a generator, of which a batch is in memory at a time.

        Raises:
            DataError: naming an image that cannot be used.
            TypeError: one image rather than a list of them.
        """
        return self._run(images)[0]

    def _run(self, images: Iterable[ImageLike]) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [N, num_classes] and scores of novelty [N], float32."""
        if _is_one_array(images) or isinstance(images, str | bytes | Path | Image.Image):
            raise TypeError("predict takes a list of images; put the one image in a list")
        rows, novelties = [np.empty((0, len(self.class_names)), np.float32)], [np.empty(0, np.float32)]
        if not isinstance(images, Iterable):
            raise TypeError(f"predict takes a list of images; received {type(images).__name__}")
        remaining = iter(images)
        while chunk := list(islice(remaining, self.placement.round_up(_LARGEST_BATCH))):
            pixels = np.stack([self.image_spec.to_uint8(open_image(image)) for image in chunk])
            # Sizes are rounded up to powers of two, so that few shapes are ever compiled.
            size = self.placement.round_up(1 << (len(pixels) - 1).bit_length())
            padded = np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), np.uint8)])
            shares, novelty = jax.device_get(self._forward(self.variables, self.placement.put_batch(padded)))
            rows.append(shares[: len(pixels)])
            novelties.append(novelty[: len(pixels)])
        return np.concatenate(rows), np.concatenate(novelties)

    @cached_property
    def _forward(self) -> Any:
        def forward(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            pixels, novelty = self.image_spec.normalize(images), Novelty()
            features = None
            if self.confidence is not None and self.confidence.novelty.reads_features:
                novelty = self.confidence.novelty
                features = self.model.apply(variables, pixels, method="features")  # XLA computes them once
            logits = jnp.asarray(self.model.apply(variables, pixels))
            calibrated = logits if self.confidence is None else self.confidence.calibrate(logits)
            shares = jax.nn.sigmoid(calibrated) if self.multi_label else jax.nn.softmax(calibrated, axis=-1)
            return shares, novelty.score(logits, features)

        return jax.jit(forward)


def _is_one_array(images: Any) -> bool:
    """Whether it is one image, [H, W] or [H, W, channels], as an array of NumPy, JAX or another library."""
    axes = getattr(images, "ndim", None)
    return axes in (0, 2) or (axes == 3 and images.shape[-1] in (1, 3, 4))


def restore(
    directory: str | Path,
    *,
    step: int | Literal["best", "last"] = "best",
    mesh: Mesh | None = None,
    allow_local_code: bool = False,
) -> Predictor:
    """A predictor from a run's folder, or from a model bundle moved anywhere alone.

    Args:
        directory: what ``finetune run`` wrote, or its ``model`` folder; or the URL of a copy of either, by fsspec
            (``s3://``, ``gs://``, ``https://``, ``file://``, ...), which is fetched once; or the hub id of a bundle,
            ``owner/name[@revision]``, likewise.
        step: ``best``, the model that the run chose; ``last``, the newest saved state; or the number of a saved
            state. The last two need the run's folder.
        mesh: from :func:`finetune.make_mesh`, among whose devices variables and images are divided; by default, all
            devices of this process have all variables, and share the images.
        allow_local_code: import the module of your own that the model was made with, if it was.

    Raises:
        CheckpointError: nothing to restore there, a damaged bundle, or a step that is not saved.
    """
    folder = local_folder(directory, skip=("state",) if step == "best" else ())
    home = find_bundle(folder)
    if home is None:
        what = (
            "an unfinished run without a model yet" if (folder / "run.json").is_file() else "no run and no model bundle"
        )
        raise CheckpointError(
            f"{folder}: {what if folder.is_dir() else 'no such folder'}; give what finetune run wrote"
        )
    placement = on_all_devices() if mesh is None else Placement(mesh)
    bundle = load_bundle(home, allow_local_code=allow_local_code, placement=placement)
    if step == "best":
        return Predictor(bundle, placement)
    if not (folder / "state").is_dir():
        raise CheckpointError(f"{folder}: step {step!r} needs the saved states of a run, and there is no state/ here")
    with RunCheckpoints(folder / "state", read_only=True, placement=placement) as checkpoints:
        steps = checkpoints.steps()
        if not steps or (step != "last" and step not in steps):
            raise CheckpointError(
                f"{folder}: no saved step {step!r}; there are: {', '.join(map(str, steps)) or 'none'}"
            )
        changed = checkpoints.variables(steps[-1] if step == "last" else int(step))
    if head_paths(changed) != head_paths(bundle.variables):
        raise CheckpointError(
            f"{folder}: step {step!r} has another kind of head than the model that the run chose; use step='best'"
        )
    variables = merge(bundle.variables, changed)
    bundle = replace(bundle, variables=variables, confidence=None)  # that is the chosen model's alone
    return Predictor(bundle, placement)
