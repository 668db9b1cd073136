"""Features of a run's images: computed once, kept on disk, and used again by later stages and runs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from finetune.data.augment import make_training_transform
from finetune.data.feature_store import FeatureStore, in_memory, open_store
from finetune.data.labeled_images import Split
from finetune.data.loader import evaluation_batches, kept_evaluation_batches, view_batches
from finetune.distributed.processes import gather_json, process_count, process_index
from finetune.distributed.sharding import Placement
from finetune.errors import CheckpointError, ModelError
from finetune.evaluation.metrics import Evaluation, evaluate_batches
from finetune.evaluation.steps import make_kept_eval_step
from finetune.files import cache_folder
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier, without_head
from finetune.recipe.augment import Augment
from finetune.run.progress import Progress
from finetune.training.features import (
    FeatureExtractor,
    extraction_batch_size,
    head_input_prefix,
    logits_prefix,
)
from finetune.trees import Variables, are_same, fetch, paths_of, pick

_T = TypeVar("_T")
_ROWS = 4096  # read at a time
_IN_MEMORY = 2**30  # bytes that are kept in memory where the disk does not take them


@dataclass(frozen=True)
class Views:
    """Augmented views of each image."""

    count: int
    augment: Augment
    seed: int


class RunFeatures:
    """The features of a run's images, by what computes them.

    Attributes:
        batch_size: images at a time.
        placement: of variables and batches.
    """

    def __init__(
        self, spec: ImageSpec, most: int, display: Progress, check: Callable[[str], None], placement: Placement
    ) -> None:
        """
        Args:
            most: images at a time.
            check: is called between batches with what is under way, and may raise.
            placement: of variables and batches.
        """
        self.placement = placement
        self.batch_size = placement.round_up(extraction_batch_size(most))
        self._spec, self._display, self._check = spec, display, check
        self._steps: dict[str, Any] = {}  # compiled
        self._head: tuple[Variables, FeatureExtractor] | None = None
        self._evaluator: FeatureEvaluator | None = None
        self._stores: dict[str, FeatureStore] = {}

    def store(
        self, extractor: FeatureExtractor, split: Split, name: str, views: Views | None = None, *, tell: bool = True
    ) -> FeatureStore:
        """What an extractor keeps of every image, from the disk as far as it is there.

        Args:
            split: its images have been scanned.
            name: what for, in messages.
            tell: say in a line whether they were computed or reused.

        Raises:
            CheckpointError: the disk has no room for it, and it is too large to be kept in memory.
        """
        extractor.share_program(self._steps)
        about = self._about(extractor, split, views)
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        if key not in self._stores:
            began = time.perf_counter()
            store = self._stores[key] = self._open(key, about, extractor, split, name, views)
            if tell:
                self._tell(store, name, time.perf_counter() - began)
        return self._stores[key]

    def head_inputs(
        self,
        classifier: Classifier,
        variables: Variables,
        split: Split,
        name: str,
        views: Views | None = None,
        *,
        tell: bool = True,
    ) -> np.ndarray:
        """The features that the head reads, float32 [n, num_features]; of several views, the first one's."""
        extractor = self.head_extractor(classifier, variables)
        store, frozen = self.store(extractor, split, name, views, tell=tell), without_head(variables)
        parts = [store.take(np.arange(i, min(i + _ROWS, len(split)))) for i in range(0, len(split), _ROWS)]
        rows = [extractor.prefix.resume({}, frozen, self.placement.put_whole(part)) for part in parts]
        return np.concatenate([fetch(row).astype(np.float32) for row in rows])

    def head_extractor(self, classifier: Classifier, variables: Variables) -> FeatureExtractor:
        """Of the features that the head reads.

        Raises:
            ModelError: the backbone computes nothing.
        """
        backbone = without_head(variables)
        if self._head is not None and are_same(backbone, self._head[0]):
            return self._head[1]
        prefix = head_input_prefix(classifier, variables, self._spec, self.batch_size)
        if prefix is None:
            raise ModelError("the backbone computes nothing from images that could be kept as features")
        extractor = FeatureExtractor(prefix, backbone, self._spec, self.batch_size, placement=self.placement)
        extractor.share_program(self._steps)
        self._head = backbone, extractor
        return extractor

    def evaluator(
        self, classifier: Classifier, variables: Variables, varying: frozenset[str], most: int
    ) -> FeatureEvaluator | None:
        """Evaluation from what is computed once, by the programs of the last one where they would be the same.

        Args:
            varying, most: as of :class:`FeatureEvaluator`.

        Returns:
            None where there is nothing to compute once.
        """
        if self._evaluator is None or not self._evaluator.evaluates(classifier, variables, varying):
            self._evaluator = FeatureEvaluator(self, classifier, variables, varying, most)
        return self._evaluator if self._evaluator.can else None

    def _open(
        self,
        key: str,
        about: dict[str, Any],
        extractor: FeatureExtractor,
        split: Split,
        name: str,
        views: Views | None,
    ) -> FeatureStore:
        rows = len(split) * (views.count if views else 1)

        def compute(start: int) -> Iterable[Sequence[np.ndarray]]:
            size, share = extractor.batch_size, extractor.share
            if views is None:
                batches = evaluation_batches(split, self._spec, size, start, share)
            else:
                transform = make_training_transform(views.augment, self._spec)
                batches = view_batches(split, transform, size, views.count, seed=views.seed, start=start, share=share)
            return self._display.count(extractor.blocks(batches, rows - start), f"{name}: features", rows, start)

        if process_count() > 1:  # each keeps all rows
            key = f"{key}-{process_index()}-of-{process_count()}"
        try:
            return open_store(
                cache_folder() / "features" / key,
                rows,
                extractor.specs,
                compute,
                about=about,
                say=self._display.say,
                waiting=lambda: self._check(f"while {name} waited for features"),
                agree=_agree,
            )
        except CheckpointError as error:
            if rows * extractor.bytes_per_image > _IN_MEMORY:
                raise
            self._display.say(f"{error}; they are kept in memory")
            return in_memory(compute)

    def minded(self, items: Iterable[_T], when: str) -> Iterator[_T]:
        """The items, unless a signal comes."""
        for item in items:
            self._check(when)
            yield item

    def _tell(self, store: FeatureStore, name: str, seconds: float) -> None:
        count, size = len(store), f"{store.nbytes / 1e6:,.1f} MB"
        computed = count - store.reused
        if not computed:
            self._display.say(f"{name}: the features of {count:,} images are reused ({size})")
            return
        earlier = f", {store.reused:,} are reused" if store.reused else ""
        rate = f"{computed / seconds:,.0f} images/s" if seconds else ""
        self._display.say(f"{name}: features of {computed:,} images in {seconds:.1f} s ({rate}){earlier}, {size} kept")

    def _about(self, extractor: FeatureExtractor, split: Split, views: Views | None) -> dict[str, Any]:
        """Everything that the rows depend on."""
        about: dict[str, Any] = {
            "program": extractor.identity,
            "images": _hash_images(split),
            "image_spec": self._spec.to_json(),
            "rows": [spec.to_json() for spec in extractor.specs],
        }
        if not self.placement.is_trivial:  # other meshes round otherwise, and a run's bits do not depend on the cache
            about["mesh"] = dict(self.placement.mesh.shape)
        if views is not None:
            about["views"] = {**asdict(views), "augment": views.augment.model_dump(mode="json")}
        return about


def _agree(rows: int | None) -> int:
    """How many rows of a store to keep: those that every process has, and otherwise none.

    Raises:
        CheckpointError: another process cannot use its store.
    """
    counts = gather_json(rows)
    if rows is not None and None in counts:
        raise CheckpointError(f"process {counts.index(None)} has no room for features")
    return rows or 0 if len(set(counts)) == 1 else 0


def _hash_images(split: Split) -> str:
    """Over the pixels of every image, and the pixels as the split gives them where those were shrunk."""
    assert split.stats is not None
    digest = hashlib.sha256(split.stats.pixel_hash.tobytes())
    shrunk = getattr(split.images, "shortest_edge", None)
    return digest.hexdigest() + (f" {shrunk}" if shrunk else "")


class FeatureEvaluator:
    """Evaluation of a classifier some of whose variables vary, from what the others give once."""

    def __init__(
        self, features: RunFeatures, classifier: Classifier, variables: Variables, varying: frozenset[str], most: int
    ) -> None:
        """
        Args:
            variables: arrays; those that do not vary are used from here.
            varying: ``collection/path`` of the variables that each evaluation brings.
            most: images in a step.
        """
        self._features, self._classifier, self._varying, self._most = features, classifier, varying, most
        self._frozen, self._shapes = self._divide(variables)
        spec = features._spec
        size = features.batch_size
        self._prefix = logits_prefix(classifier, self._shapes, self._frozen, spec, (size, size + 1))
        if self._prefix is not None:
            self._extractor = FeatureExtractor(self._prefix, self._frozen, spec, size, placement=features.placement)
            self._step = make_kept_eval_step(self._prefix, features.placement)

    @property
    def can(self) -> bool:
        """Whether there is anything to compute once."""
        return self._prefix is not None

    def evaluates(self, classifier: Classifier, variables: Variables, varying: frozenset[str]) -> bool:
        """Whether it is the same for these: they are divided alike, and those that do not vary are the same arrays."""
        if classifier is not self._classifier or varying != self._varying:
            return False
        frozen, shapes = self._divide(variables)
        return are_same(frozen, self._frozen) and bool(shapes == self._shapes)

    def _divide(self, variables: Variables) -> tuple[Variables, Any]:
        """The variables that do not vary, and the shapes of those that do."""
        frozen = pick(variables, set(paths_of(variables)) - self._varying)
        return frozen, jax.eval_shape(lambda: pick(variables, self._varying))

    def __call__(self, variables: Variables, split: Split, name: str, keep_logits: bool = False) -> Evaluation:
        store = self._features.store(self._extractor, split, name, tell=False)
        placement = self._features.placement
        size = placement.round_up(min(self._most, len(split)))
        batches = kept_evaluation_batches(store, split.labels, size, placement.rows(size))
        batches = self._features.minded(batches, f"during {name}")
        both = pick(variables, self._varying), self._frozen
        return evaluate_batches(self._step, both, batches, split.labels, keep_logits, placement)
