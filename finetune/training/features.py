"""What a frozen prefix keeps of images: computed batch by batch, kept in a store, and what that costs and saves."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune.data.feature_store import RowSpec
from finetune.distributed.sharding import Placement, on_one_device
from finetune.errors import DataError
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier, without_head
from finetune.training.flops import count_lowered
from finetune.training.frozen_prefix import FrozenPrefix, find_frozen_prefix
from finetune.trees import hash_leaves, merge


def extraction_batch_size(most: int) -> int:
    """Images at a time: few on a CPU, where more are no faster and padding costs more."""
    return min(most, 32 if jax.default_backend() == "cpu" else 256)


class FeatureExtractor:
    """A frozen prefix with its weights.

    Attributes:
        specs: of the rows that it gives.
    """

    def __init__(
        self,
        prefix: FrozenPrefix,
        frozen: Any,
        spec: ImageSpec,
        batch_size: int,
        dtype: str | None = None,
        placement: Placement | None = None,
    ) -> None:
        """
        Args:
            batch_size: images at a time.
            dtype: of floating-point values where they are kept; by default as they are computed.
            placement: where there are several devices, which share each batch.
        """
        self.prefix, self._frozen, self._dtype = prefix, frozen, dtype
        self._placement = placement or on_one_device()
        self._step = _make_step(prefix, dtype, self._placement)
        dtypes = [jax.eval_shape(lambda x: _convert(x, dtype), array).dtype for array in prefix.kept]
        self.specs = [RowSpec(array.shape, np.dtype(dtype)) for array, dtype in zip(prefix.kept, dtypes, strict=True)]
        self._images = jax.ShapeDtypeStruct((batch_size, *spec.shape), jnp.uint8)

    @property
    def batch_size(self) -> int:
        return int(self._images.shape[0])

    @property
    def bytes_per_image(self) -> int:
        return sum(spec.nbytes for spec in self.specs)

    @cached_property
    def flops_per_image(self) -> float:
        """XLA's count."""
        return count_lowered(self._traced) / self.batch_size

    @cached_property
    def identity(self) -> str:
        """A hash of the program and of the weights that it reads."""
        weights = {str(i): leaf for i, leaf in enumerate(self.prefix.reads(self._frozen))}
        digest = hashlib.sha256(self._traced.lower().as_text().encode())
        digest.update("".join(hash_leaves(weights).values()).encode())
        return digest.hexdigest()

    def share_program(self, steps: dict[str, Any]) -> None:
        """Uses the compiled program that another extractor left among ``steps``, or leaves its own there."""
        self._step = steps.setdefault(f"{self.identity} {self._dtype}", self._step)

    def trace(self, weights: Any, images: Any) -> Any:
        """The program, a ``jax.stages.Traced``, of what :meth:`put_weights` and :meth:`put_images` give."""
        return self._step.trace(weights, images)

    def images_per_second(self) -> float:
        """Of the compiled program alone, measured over three batches."""
        images, frozen = self.put_images(np.zeros(self._images.shape, np.uint8)), self.put_weights()
        jax.block_until_ready(self._step(frozen, images))
        began = time.perf_counter()
        jax.block_until_ready([self._step(frozen, images) for _ in range(3)])
        return 3 * self.batch_size / (time.perf_counter() - began)

    @property
    def share(self) -> np.ndarray | None:
        """The rows of each batch that this process brings; None for all."""
        return self._placement.rows(self.batch_size)

    def blocks(self, batches: Iterable[dict[str, np.ndarray]], count: int) -> Iterator[list[np.ndarray]]:
        """The rows of batches of images, without padding. A batch is computed while the one before is taken.

        Args:
            batches: of ``batch_size``; with several processes, the share of this one.
            count: images in all of them.

        Raises:
            DataError: values that the dtype of the store cannot hold.
        """
        pending: Any = None
        frozen = self.put_weights()
        for batch in batches:
            computed = self._step(frozen, self.put_images(batch["image"])), min(count, self.batch_size)
            count -= self.batch_size
            if pending is not None:
                yield self._rows(*pending)
            pending = computed
        if pending is not None:
            yield self._rows(*pending)

    def _rows(self, result: Any, count: int) -> list[np.ndarray]:
        arrays, overflow = jax.device_get(result)
        if overflow:
            raise DataError(f"frozen_cache.dtype: {self._dtype} cannot hold the features: use bfloat16 or float32")
        return [array[:count] for array in arrays]

    def put_weights(self) -> Any:
        """Brings the weights to the devices that compute."""
        return self._placement.put(self._frozen)

    def put_images(self, images: np.ndarray) -> jax.Array:
        """Brings images, uint8 [batch_size, H, W, C], to these devices."""
        return self._placement.put_batch(images)

    @cached_property
    def _traced(self) -> Any:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), self._frozen)
        whole = self._placement.is_trivial
        step = self._step if whole else _make_step(self.prefix, self._dtype, on_one_device())  # of no mesh
        return step.trace(shapes, self._images)


def _make_step(prefix: FrozenPrefix, dtype: str | None, placement: Placement) -> Any:
    """``step(frozen, images)``, jitted: the kept values, and whether the dtype cannot hold some."""

    def step(frozen: Any, images: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        arrays = prefix.compute(frozen, images)
        converted = [_convert(array, dtype) for array in arrays]
        pairs = zip(arrays, converted, strict=True)
        overflows = [(jnp.isfinite(a) & ~jnp.isfinite(b)).any() for a, b in pairs if a.dtype != b.dtype]
        return converted, jnp.stack(overflows).any() if overflows else jnp.bool_(False)

    return placement.jit(step)


def _convert(array: jax.Array, dtype: str | None) -> jax.Array:
    return array.astype(dtype) if dtype and jnp.issubdtype(array.dtype, jnp.floating) else array


def head_input_prefix(classifier: Classifier, variables: Any, spec: ImageSpec, batch_size: int) -> FrozenPrefix | None:
    """Of the features that the head reads, in evaluation; None of a model without a head, or without a backbone worth
    computing once."""

    def features(varying: Any, frozen: Any, images: jax.Array) -> jax.Array:
        result: Any = classifier.apply(frozen, spec.normalize(images), method="features")
        return jnp.asarray(result)

    image = jax.ShapeDtypeStruct(spec.shape, jnp.uint8)
    return find_frozen_prefix(features, {}, without_head(variables), image, (batch_size, batch_size + 1))


def logits_prefix(
    classifier: Classifier, varying: Any, frozen: Any, spec: ImageSpec, batch_sizes: tuple[int, int]
) -> FrozenPrefix | None:
    """Of the logits in evaluation, where some variables vary: ``(varying, frozen, images) -> float32 [N, classes]``."""

    def logits(varying: Any, frozen: Any, images: jax.Array) -> jax.Array:
        result: Any = classifier.apply(merge(frozen, varying), spec.normalize(images))
        return jnp.asarray(result)

    image = jax.ShapeDtypeStruct(spec.shape, jnp.uint8)
    return find_frozen_prefix(logits, varying, frozen, image, batch_sizes)


@dataclass(frozen=True)
class CacheCost:
    """What computing the frozen part once costs and saves.

    Attributes:
        prefix_flops, step_flops: of one image: the frozen part, and the rest of a training step.
        bytes_per_image: kept of each view.
        passes: over the training images; views: kept of each.
    """

    prefix_flops: float
    step_flops: float
    bytes_per_image: int
    passes: float
    views: int = 1

    @property
    def fewer_flops(self) -> float:
        """How many times fewer FLOPs the stage takes, extraction included."""
        all_of = self.passes * (self.prefix_flops + self.step_flops)
        return all_of / (self.views * self.prefix_flops + self.passes * self.step_flops)

    @property
    def pays(self) -> bool:
        """Whether it saves enough, also beside reading the values again in each pass: a byte takes a CPU about as long
        as 50 FLOPs, and an accelerator, which has to be sent it, as 5,000."""
        saved = (1 - self.views / self.passes) * self.prefix_flops
        a_byte = 50 if jax.default_backend() == "cpu" else 5000
        return self.fewer_flops >= 1.1 and saved > a_byte * self.bytes_per_image
