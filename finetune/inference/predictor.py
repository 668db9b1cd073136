"""Predictions from a run's folder or a model bundle alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from finetune.checkpoint import RunCheckpoints, find_bundle
from finetune.errors import CheckpointError
from finetune.export.bundle import Bundle, load_bundle
from finetune.export.confidence import SET_KINDS, Confidence, SetKind
from finetune.images.open import ImageLike, open_image
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier, head_paths
from finetune.trees import merge

_LARGEST_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What one image shows.

    Attributes:
        label, index: of the most probable class.
        probabilities: of every class, by name; they sum to one unless an image may be of several classes.
        labels: the most probable class; where an image may be of several, all those above one half.
        unknown: the image looks less like those of any class than 95% of the validation images did (its energy is
            higher); None where the model has seen no validation images.
        set: with a coverage asked for, the classes that hold the true one so often; may be empty. Else None.
    """

    label: str
    index: int
    probabilities: dict[str, float]
    labels: tuple[str, ...]
    unknown: bool | None = None
    set: tuple[str, ...] | None = None

    @property
    def confidence(self) -> float:
        """The probability of ``label``."""
        return self.probabilities[self.label]


class Predictor:
    """A restored classifier.

    Attributes:
        model: the Linen module.
        variables: its parameters and statistics.
        class_names: in the order of the outputs.
        image_spec: how images are prepared, the same as in training.
        multi_label: an image may be of several classes.
        confidence: what the validation images said: its calibration is part of all probabilities. None without any.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.model: Classifier = bundle.classifier
        self.variables: dict[str, Any] = bundle.variables
        self.class_names: tuple[str, ...] = bundle.class_names
        self.image_spec: ImageSpec = bundle.image_spec
        self.multi_label: bool = bundle.multi_label
        self.confidence: Confidence | None = bundle.confidence

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled program; a copy in another process compiles its own."""
        state = {name: value for name, value in self.__dict__.items() if name != "_forward"}
        return {**state, "variables": jax.device_get(self.variables)}

    def predict(
        self, images: Iterable[ImageLike], *, coverage: float | None = None, sets: SetKind = "lac"
    ) -> list[Prediction]:
        """One prediction an image.

        Args:
            images: as in :meth:`predict_proba`.
            coverage: asks for sets of classes that hold the true one so often, in (0, 1).
            sets: their kind; see :meth:`finetune.export.confidence.Confidence.sets`.

        Raises:
            CheckpointError: coverage is asked for, and the model has seen no validation images, or images of it have
                several labels.
            ValueError: a coverage outside of (0, 1), or another kind of sets.
            DataError, TypeError: as in :meth:`predict_proba`.
        """
        if coverage is not None:
            self._check_coverage(coverage, sets)
        probabilities, energies = self._run(images)
        count = len(probabilities)
        unknown: list[bool | None] = [None] * count
        members: list[tuple[str, ...] | None] = [None] * count
        if self.confidence is not None:
            unknown = (energies > self.confidence.energy_threshold).tolist()
            if coverage is not None:
                rows = self.confidence.sets(probabilities, coverage, sets)
                members = [self._names(np.flatnonzero(row)) for row in rows]
        return [self._prediction(*each) for each in zip(probabilities, unknown, members, strict=True)]

    def _check_coverage(self, coverage: float, sets: str) -> None:
        if not 0 < coverage < 1:
            raise ValueError(f"coverage: a share between 0 and 1; received {coverage}")
        if sets not in SET_KINDS:
            raise ValueError(f"sets: one of {', '.join(SET_KINDS)}; received {sets!r}")
        if self.confidence is None:
            raise CheckpointError(
                "coverage: the model has seen no validation images, which sets are measured on; give the recipe some: "
                "data.validation"
            )
        if self.multi_label:
            raise CheckpointError("coverage: sets are for images of one class; this model's may be of several")

    def _prediction(self, row: np.ndarray, unknown: bool | None, members: tuple[str, ...] | None) -> Prediction:
        index = int(row.argmax())
        chosen = np.flatnonzero(row > 0.5) if self.multi_label else np.array([index])
        probabilities = dict(zip(self.class_names, row.tolist(), strict=True))
        return Prediction(self.class_names[index], index, probabilities, self._names(chosen), unknown, members)

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
        """Probabilities [N, num_classes] and energies [N], float32."""
        array = isinstance(images, np.ndarray) and (
            images.ndim < 3 or (images.ndim == 3 and images.shape[-1] in (1, 3))
        )
        if array or isinstance(images, str | bytes | Path | Image.Image):
            raise TypeError("predict takes a list of images; put the one image in a list")
        rows, energies = [np.empty((0, len(self.class_names)), np.float32)], [np.empty(0, np.float32)]
        if not isinstance(images, Iterable):
            raise TypeError(f"predict takes a list of images; received {type(images).__name__}")
        remaining = iter(images)
        while chunk := list(islice(remaining, _LARGEST_BATCH)):
            pixels = np.stack([self.image_spec.to_uint8(open_image(image)) for image in chunk])
            # Sizes are rounded up to powers of two, so that few shapes are ever compiled.
            size = 1 << (len(pixels) - 1).bit_length()
            padded = np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), np.uint8)])
            shares, energy = jax.device_get(self._forward(self.variables, padded))
            rows.append(shares[: len(pixels)])
            energies.append(energy[: len(pixels)])
        return np.concatenate(rows), np.concatenate(energies)

    @cached_property
    def _forward(self) -> Any:
        def forward(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = jnp.asarray(self.model.apply(variables, self.image_spec.normalize(images)))
            calibrated = logits if self.confidence is None else self.confidence.calibrate(logits)
            shares = jax.nn.sigmoid(calibrated) if self.multi_label else jax.nn.softmax(calibrated, axis=-1)
            return shares, -jax.nn.logsumexp(logits, axis=-1)

        return jax.jit(forward)


def restore(
    directory: str | Path, *, step: int | Literal["best", "last"] = "best", allow_local_code: bool = False
) -> Predictor:
    """A predictor from a run's folder, or from a model bundle moved anywhere alone.

    Args:
        directory: what ``finetune run`` wrote, or its ``model`` folder.
        step: ``best``, the model that the run chose; ``last``, the newest saved state; or the number of a saved
            state. The last two need the run's folder.
        allow_local_code: import the module of your own that the model was made with, if it was.

    Raises:
        CheckpointError: nothing to restore there, a damaged bundle, or a step that is not saved.
    """
    folder = Path(directory).expanduser()
    home = find_bundle(folder)
    if home is None:
        what = (
            "an unfinished run without a model yet" if (folder / "run.json").is_file() else "no run and no model bundle"
        )
        raise CheckpointError(
            f"{folder}: {what if folder.is_dir() else 'no such folder'}; give what finetune run wrote"
        )
    bundle = load_bundle(home, allow_local_code=allow_local_code)
    if step == "best":
        return Predictor(bundle)
    if not (folder / "state").is_dir():
        raise CheckpointError(f"{folder}: step {step!r} needs the saved states of a run, and there is no state/ here")
    with RunCheckpoints(folder / "state", read_only=True) as checkpoints:
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
    return Predictor(replace(bundle, variables=variables, confidence=None))  # that is the chosen model's alone
