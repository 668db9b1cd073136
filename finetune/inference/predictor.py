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
    """

    label: str
    index: int
    probabilities: dict[str, float]
    labels: tuple[str, ...]


class Predictor:
    """A restored classifier.

    Attributes:
        model: the Linen module.
        variables: its parameters and statistics.
        class_names: in the order of the outputs.
        image_spec: how images are prepared, the same as in training.
        multi_label: an image may be of several classes.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.model: Classifier = bundle.classifier
        self.variables: dict[str, Any] = bundle.variables
        self.class_names: tuple[str, ...] = bundle.class_names
        self.image_spec: ImageSpec = bundle.image_spec
        self.multi_label: bool = bundle.multi_label

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled program; a copy in another process compiles its own."""
        state = {name: value for name, value in self.__dict__.items() if name != "_probabilities"}
        return {**state, "variables": jax.device_get(self.variables)}

    def predict(self, images: Iterable[ImageLike]) -> list[Prediction]:
        """One prediction an image; arguments and errors as in :meth:`predict_proba`."""
        return [self._prediction(row) for row in self.predict_proba(images)]

    def _prediction(self, row: np.ndarray) -> Prediction:
        index = int(row.argmax())
        chosen = np.flatnonzero(row > 0.5) if self.multi_label else [index]
        probabilities = dict(zip(self.class_names, row.tolist(), strict=True))
        labels = tuple(self.class_names[int(i)] for i in chosen)
        return Prediction(self.class_names[index], index, probabilities, labels)

    def predict_proba(self, images: Iterable[ImageLike]) -> np.ndarray:
        """Class probabilities, float32 [N, num_classes], rows in the order given.

        Args:
            images: paths, PIL images, encoded bytes, or uint8 arrays [H, W] or [H, W, 3], of any sizes; in a list, an
                array [N, H, W, 3] or a generator, of which a batch is in memory at a time.

        Raises:
            DataError: naming an image that cannot be used.
            TypeError: one image rather than a list of them.
        """
        array = isinstance(images, np.ndarray) and (
            images.ndim < 3 or (images.ndim == 3 and images.shape[-1] in (1, 3))
        )
        if array or isinstance(images, str | bytes | Path | Image.Image):
            raise TypeError("predict takes a list of images; put the one image in a list")
        rows = [np.empty((0, len(self.class_names)), np.float32)]
        if not isinstance(images, Iterable):
            raise TypeError(f"predict takes a list of images; received {type(images).__name__}")
        remaining = iter(images)
        while chunk := list(islice(remaining, _LARGEST_BATCH)):
            pixels = np.stack([self.image_spec.to_uint8(open_image(image)) for image in chunk])
            # Sizes are rounded up to powers of two, so that few shapes are ever compiled.
            size = 1 << (len(pixels) - 1).bit_length()
            padded = np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), np.uint8)])
            rows.append(np.asarray(self._probabilities(self.variables, padded))[: len(pixels)])
        return np.concatenate(rows)

    @cached_property
    def _probabilities(self) -> Any:
        def probabilities(variables: Any, images: jax.Array) -> jax.Array:
            logits = jnp.asarray(self.model.apply(variables, self.image_spec.normalize(images)))
            return jax.nn.sigmoid(logits) if self.multi_label else jax.nn.softmax(logits, axis=-1)

        return jax.jit(probabilities)


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
    return Predictor(replace(bundle, variables=variables))
