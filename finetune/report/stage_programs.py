"""The programs of a run's stages: what each compiles, and how to run it on the recipe's own images."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.loader import evaluation_batches
from finetune.recipe import TrainStage
from finetune.report.stopwatch import time_batches
from finetune.run.features import RunFeatures
from finetune.run.progress import Progress
from finetune.run.setup import RunSetup
from finetune.training.features import FeatureExtractor
from finetune.training.loop import AHEAD
from finetune.training.stage_trainer import StageTrainer

MADE_AHEAD = 4  # batches that a loader may have ready


@dataclass(frozen=True)
class Program:
    """A program, and how to run it again and again.

    Attributes:
        images: of one step.
        trace: gives its ``jax.stages.Traced``.
        make_step: of the compiled program: a function that starts a step on a batch, or on the one that is there
            where it is given None, and gives what to wait for.
        batches: fresh ones from the recipe's own data; None where these are not read.
        first: a batch of the recipe's own images, or of what is kept of them; None where these are not there.
        feed: takes such a batch to the devices.
        began: when the work on it began, in seconds.
        trains: it is a training step, whose results are its metrics.
        kept_bytes: of an image, where it extracts features.
    """

    images: int
    compute_dtype: str
    trace: Callable[[], Any]
    make_step: Callable[[Any], Callable[[Any], Any]]
    batches: Callable[[], Any] | None
    first: Callable[[], Any] | None
    feed: Callable[[Any], Any]
    began: float
    trains: bool
    kept_bytes: int = 0

    def fed_rate(self, step: Callable[[Any], Any], steps: int, limit: float) -> float:
        """Images a second of steps that the loader feeds, as in a run.

        Args:
            step: of :attr:`make_step`.
            limit: seconds, after which no further step begins.
        """
        assert self.batches is not None
        with closing(self.batches()) as batches:
            ahead: deque[Any] = deque()

            def take() -> Any:
                while len(ahead) < AHEAD:
                    ahead.append(self.feed(next(batches)))
                return step(ahead.popleft())

            return time_batches(take, steps, limit, MADE_AHEAD + AHEAD) * self.images


class StagePrograms:
    """Those of a run, before anything is trained."""

    def __init__(self, setup: RunSetup, display: Progress, *, synthetic: bool = False) -> None:
        """
        Args:
            synthetic: the recipe's images are not there.
        """
        self.setup, self._synthetic = setup, synthetic
        most = setup.recipe.evaluate.batch_size
        self._features = RunFeatures(setup.spec, most, display, lambda when: None, setup.placement)

    def of(self, index: int) -> Iterator[Program]:
        """Those of a stage: one that extracts features, where they are computed once, and its step, where it trains."""
        began = time.perf_counter()
        if not isinstance(self.setup.recipe.stages[index], TrainStage):
            extractor = self._features.head_extractor(self.setup.classifier, self.setup.variables)
            yield self._extraction(extractor, began)
            return
        trainer = self.setup.trainer(index, self.setup.untrained(index))
        frozen_part = self._extractor_of(index, trainer)
        if frozen_part is not None:
            yield self._extraction(frozen_part, began)
            began = time.perf_counter()
        yield self._training(index, trainer, frozen_part, began)

    def _extractor_of(self, index: int, trainer: StageTrainer) -> FeatureExtractor | None:
        """Of the stage's frozen part, where that is computed once."""
        decision = self.setup.decide_cache(index, trainer)
        return decision.extractor if decision.use else None

    def _training(self, index: int, trainer: StageTrainer, extractor: FeatureExtractor | None, began: float) -> Program:
        """The stage's step, on images or on what is kept of them."""
        setup, stage, put = self.setup, trainer.stage, trainer.placement.put_batch
        state, frozen = trainer.init_state(), trainer.placement.put(trainer.frozen)
        random = put(self._random_batch(stage.batch_size, extractor))

        def make_step(compiled: Any) -> Callable[[Any], Any]:
            held = [state]

            def step(batch: Any) -> Any:
                held[0], metrics = compiled(held[0], frozen, random if batch is None else batch)
                return metrics

            return step

        return Program(
            images=stage.batch_size,
            compute_dtype=stage.compute_dtype,
            trace=lambda: trainer.step.trace(state, frozen, random),  # type: ignore[attr-defined]
            make_step=make_step,
            batches=None if self._synthetic or extractor else lambda: setup.batches(index),
            first=None if self._synthetic else lambda: self._first_batch(index, extractor),
            feed=put,
            began=began,
            trains=True,
        )

    def _extraction(self, extractor: FeatureExtractor, began: float) -> Program:
        """Of features, once for each image."""
        setup, size = self.setup, extractor.batch_size
        weights, images = extractor.put_weights(), extractor.put_images(self._random_batch(size)["image"])
        few = len(setup.train) < size  # all of them together are of another shape

        def batches() -> Iterator[Any]:
            while True:
                yield from evaluation_batches(setup.train, setup.spec, size)

        dtype = str(getattr(setup.classifier.backbone, "dtype", None))
        return Program(
            images=size,
            compute_dtype="bfloat16" if "bfloat16" in dtype else "float32",
            trace=lambda: extractor.trace(weights, images),
            make_step=lambda compiled: lambda batch: compiled(weights, images if batch is None else batch),
            batches=None if self._synthetic or few else batches,
            first=None if self._synthetic else lambda: next(evaluation_batches(setup.train, setup.spec, size)),
            feed=lambda batch: extractor.put_images(batch["image"]),
            began=began,
            trains=False,
            kept_bytes=extractor.bytes_per_image,
        )

    def _first_batch(self, index: int, extractor: FeatureExtractor | None) -> dict[str, Any]:
        """A batch of a training stage: images, or what is kept of as many as are extracted at a time."""
        if extractor is None:
            with closing(self.setup.batches(index)) as batches:
                return dict(next(batches))
        images = next(evaluation_batches(self.setup.train, self.setup.spec, extractor.batch_size))
        count = min(extractor.batch_size, len(self.setup.train))
        [kept] = extractor.blocks([images], count)
        rows = np.resize(np.arange(count), self.setup.recipe.train_stages[index].batch_size)
        return {"label": images["label"][rows], "kept": [block[rows] for block in kept]}

    def _random_batch(self, size: int, extractor: FeatureExtractor | None = None) -> dict[str, Any]:
        """Of images, or of what an extractor keeps of them."""
        rng, labels = np.random.default_rng(0), self.setup.splits.train.labels
        label = labels[rng.integers(0, len(labels), size)]
        if extractor is None:
            return {"label": label, "image": rng.integers(0, 256, (size, *self.setup.spec.shape), dtype=np.uint8)}
        kept = [rng.standard_normal((size, *row.shape)).astype(row.dtype) for row in extractor.specs]
        return {"label": label, "kept": kept}
