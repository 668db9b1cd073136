"""What a run works on: everything that is loaded, checked and decided before anything trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune.data.augment import make_training_transform
from finetune.data.feature_store import FeatureStore
from finetune.data.image_cache import cached
from finetune.data.image_record import ImageRecord
from finetune.data.known_classes import read_known_images
from finetune.data.labeled_images import Split
from finetune.data.leakage import describe_leakage
from finetune.data.loader import kept_batches, steps_per_epoch, training_batches
from finetune.data.splits import Splits, load_splits
from finetune.distributed.mesh import describe_mesh, make_mesh, mesh_for
from finetune.distributed.processes import gather_json
from finetune.distributed.sharding import Placement
from finetune.errors import DataError, RecipeError, on_one_line
from finetune.files import cache_folder, free_gigabytes
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone
from finetune.models.build import attach_head, open_backbone
from finetune.models.classifier import Classifier, head_paths, init_shapes, without_head
from finetune.models.depth import depth_order_of
from finetune.models.zero_shot import TextClassifier, text_classifier
from finetune.optim.parameter_plan import ParameterPlan
from finetune.optim.schedules import StageLength
from finetune.recipe import DataConfig, HeadStage, Recipe, TrainStage
from finetune.recipe.heads import LinearProbeStage
from finetune.recipe.mesh import AUTO, MeshConfig
from finetune.run.auto_mesh import choose_mesh
from finetune.run.checks import check_class_count, check_label_kind, check_text, check_validation
from finetune.run.heads import head_config, probe_weights
from finetune.tracking import Track, untracked
from finetune.training.features import extraction_batch_size
from finetune.training.frozen_cache import CacheDecision, decide_cache
from finetune.training.losses import class_weights
from finetune.training.stage_trainer import StageTrainer
from finetune.trees import Variables, hash_leaves, hash_tree, merge, paths_of, pick


@dataclass(frozen=True)
class RunSetup:
    """A run before its first stage.

    Attributes:
        backbone, splits: as the recipe asks for; images and weights have been checked.
        train: the training split, its images from the cache where the recipe asks for one.
        also: further sets that every step is measured on, by name.
        classifier, variables: with the head before the first stage.
        classifiers: with the head after each stage.
        plans: by number of a training stage.
        lengths: of every stage.
        partitions: by number of a training stage, what each of its partitions takes.
        partition_lines: the same in words.
        placement: of variables and batches on the run's devices.
    """

    recipe: Recipe
    backbone: Backbone
    splits: Splits
    train: Split
    also: Mapping[str, Split]
    classifier: Classifier
    variables: Variables
    classifiers: tuple[Classifier, ...]
    plans: Mapping[int, ParameterPlan]
    lengths: tuple[StageLength, ...]
    partitions: Mapping[int, list[dict[str, Any]]]
    partition_lines: tuple[str, ...]
    placement: Placement

    @property
    def spec(self) -> ImageSpec:
        return self.backbone.image_spec

    @cached_property
    def backbone_sha256(self) -> str:
        return hash_tree(self.backbone.variables)

    @cached_property
    def images(self) -> ImageRecord:
        return ImageRecord.of(self.splits, self.also)

    @cached_property
    def changing(self) -> frozenset[str]:
        """``collection/path`` of everything in the backbone that some stage changes."""
        backbone = without_head(self.variables)
        return frozenset().union(*(plan.changes(backbone) for plan in self.plans.values()))

    def changed(self, variables: Variables) -> dict[str, Any]:
        """The part of the variables that some stage changes; the head is always among it."""
        return pick(variables, self.changing | head_paths(variables))

    def changes_backbone(self, index: int) -> bool:
        """Whether a training stage does."""
        backbone = without_head(self.variables)
        return not self.plans[index].changes(backbone).isdisjoint(paths_of(backbone))

    def hash_frozen(self, variables: Variables) -> dict[str, str]:
        """Hashes of the parameters and statistics that no stage changes."""
        backbone = without_head(variables)
        return hash_leaves(pick(backbone, set(paths_of(backbone)) - self.changing))

    @cached_property
    def leakage(self) -> str | None:
        """One line about images that are in two splits; None if there are none."""
        return describe_leakage(self.splits)

    def text(self) -> TextClassifier:
        """What the text tower says of the classes."""
        return text_classifier(self.backbone, self.splits.class_names, self.recipe.head.templates)

    def first_step(self, index: int) -> int:
        """Steps of all stages before one."""
        return sum(length.total_steps for length in self.lengths[:index])

    def untrained(self, index: int) -> Variables:
        """Variables of the shapes that a stage starts from, before anything is trained."""
        if index == 0 or self.classifiers[index - 1].head_config is None:
            return self.variables
        return _with_zeros_for_head(self.classifiers[index - 1], self.variables, self.spec)

    def trainer(self, index: int, variables: Variables) -> StageTrainer:
        """Of a training stage, with the variables before it."""
        stage = self.recipe.stages[index]
        assert isinstance(stage, TrainStage)
        return StageTrainer(
            stage,
            self.classifiers[index],
            variables,
            self.spec,
            self.lengths[index],
            seed=self.recipe.seed + index,
            class_weights=class_weights(stage.loss, self.splits.train.labels, self.classifier.num_classes),
            pretrained=self.backbone.variables["params"],
            plan=self.plans[index],
            placement=self.placement,
        )

    def batches(self, index: int) -> Any:
        """A training stage's batches, from its beginning."""
        stage, data = self.recipe.stages[index], self.recipe.data
        assert isinstance(stage, TrainStage)
        return training_batches(
            self.train,
            make_training_transform(stage.augment, self.spec),
            stage.batch_size,
            seed=self.recipe.seed + index,
            num_workers=data.num_workers,
            balanced=data.sampling == "balanced",
            share=self.placement.rows(stage.batch_size),
        )

    def kept_batches(self, index: int, store: FeatureStore) -> Any:
        """The same batches with what a store keeps of the images."""
        stage = self.recipe.stages[index]
        assert isinstance(stage, TrainStage)
        balanced, seed = self.recipe.data.sampling == "balanced", self.recipe.seed + index
        share = self.placement.rows(stage.batch_size)
        return kept_batches(store, self.train.labels, stage.batch_size, seed=seed, balanced=balanced, share=share)

    def decide_cache(self, index: int, trainer: StageTrainer) -> CacheDecision:
        """Whether a training stage computes its frozen part once."""
        size = self.placement.round_up(extraction_batch_size(self.recipe.evaluate.batch_size))
        length = trainer.length
        passes = length.total_steps / (length.steps_per_epoch or length.total_steps)
        count = len(self.train)
        others = sum(len(split) for name, split in self.splits.named().items() if name != "train")
        room = min(gather_json(free_gigabytes()))  # of the process with the least
        return decide_cache(trainer, self.spec, size, passes=passes, images=count, others=others, free_gb=room)

    def describe(self) -> list[str]:
        """Lines for the person who starts the run: its data, and what each partition of each stage takes."""
        recipe, splits = self.recipe, self.splits
        validation = f"{len(splits.validation)} validation" if splits.validation is not None else "no validation"
        sizes = f"{len(splits.train)} training, {validation} and {len(splits.test)} test images"
        lines = [f"{recipe.name}: {sizes}, {len(splits.class_names)} classes, {recipe.backbone.origin}"]
        if self.backbone.license:
            lines.append(f"{recipe.backbone.origin}: license {self.backbone.license}")
        lines += [*self.backbone.report.notes, *splits.notes]
        if splits.left_out:
            count, first = len(splits.left_out), splits.left_out[0]
            lines.append(f"{count} files are not used, such as {first}; finetune check-data lists them")
        if splits.skipped:
            lines.append(f"{len(splits.skipped)} broken images are left out: see skipped_images.txt")
        if self.leakage:
            lines.append(self.leakage)
        lines += [f"{name}: {len(images):,} further test images" for name, images in self.also.items()]
        return [*map(on_one_line, lines), *self.partition_lines]


def prepare_run(
    recipe: Recipe,
    *,
    data: Any = None,
    allow_local_code: bool = False,
    track: Track = untracked,
    verify: bool = False,
    splits: Splits | None = None,
) -> RunSetup:
    """Loads and checks everything, so that what cannot work in the last stage is told before the first.

    ``verify`` reads every image again, whatever is cached. ``splits`` take the place of the recipe's data.

    Raises:
        FinetuneError: anything wrong with recipe, data or weights; it says what.
    """
    placed = None if recipe.mesh == AUTO else place(recipe)  # what is wrong there is told before anything is loaded
    backbone = open_backbone(recipe.backbone, seed=recipe.seed, allow_local_code=allow_local_code)
    if splits is None:
        splits = load_splits(recipe.data, recipe.seed, data, track, verify=verify)
    check_class_count(recipe, splits)
    check_label_kind(recipe, splits)
    check_validation(recipe, splits)
    classifier, variables = attach_head(backbone, recipe.head, len(splits.class_names), seed=recipe.seed)
    if recipe.head.init == "pretrained":
        variables = merge(variables, _pretrained_head(recipe, backbone, splits.class_names))
    lengths = tuple(stage_length(stage, splits.train) for stage in recipe.stages)
    check_text(recipe, backbone)
    labels = splits.train.labels
    if placed is None:
        mesh, line = choose_mesh(
            partial(_trainers, recipe, backbone, classifier, variables, labels, lengths), backbone.image_spec
        )
        recipe = recipe.model_copy(update={"mesh": mesh})
        placement, lines = place(recipe)
        lines = [line, *lines]
    else:
        placement, lines = placed
    cast = any(stage.frozen_dtype != "float32" for stage in recipe.train_stages.values())
    if cast or not placement.is_trivial:
        # on the host, so that a device holds no more than each stage or the mesh puts there
        backbone, variables = _on_host(backbone), jax.device_get(variables)
    placement.check_rules(variables["params"])
    walk = _walk_stages(recipe, backbone, classifier, variables, labels, lengths, placement)
    classifiers, plans, parts, more = _follow_stages(walk)
    if not cast:
        variables = placement.put(variables)
    train = _training_images(recipe.data, splits.train, verify)
    also = {name: _further_images(recipe, name, splits, track, verify) for name in recipe.evaluate.also}
    return RunSetup(
        *(recipe, backbone, splits, train, also, classifier, variables, classifiers, plans, lengths, parts),
        (*lines, *more),
        placement,
    )


def place(recipe: Recipe) -> tuple[Placement, list[str]]:
    """The devices of a run, and lines about them.

    Raises:
        MeshError: the recipe asks for others than there are, or its batches do not divide among them.
    """
    wanted = recipe.mesh
    if isinstance(wanted, MeshConfig):
        placement, lines = Placement(make_mesh(wanted), wanted.rules), []
    else:
        parts = {f"stages.{i}.batch_size": s.batch_size // s.grad_accum_steps for i, s in recipe.train_stages.items()}
        mesh, line = mesh_for(parts)
        placement, lines = Placement(mesh), [line] if line else []
    for i, stage in recipe.train_stages.items():
        placement.check_batch(f"stages.{i}.batch_size", stage.batch_size, stage.grad_accum_steps)
    if not placement.is_trivial:
        lines.insert(0, f"mesh: {describe_mesh(placement.mesh)}")
    return placement, lines


def _pretrained_head(recipe: Recipe, backbone: Backbone, class_names: Sequence[str]) -> dict[str, Any]:
    if backbone.head is None:
        raise RecipeError(
            f"head.init: pretrained: {recipe.backbone.origin} has no linear classifier on its pooled features; "
            "use zeros, or another checkpoint"
        )
    kernel, bias = backbone.head.select(class_names)
    return {"params": {"head": {"kernel": kernel, "bias": bias}}}


def _follow_stages(
    walk: Iterable[tuple[Classifier, StageTrainer | None, Any]],
) -> tuple[tuple[Classifier, ...], dict[int, ParameterPlan], dict[int, list[dict[str, Any]]], tuple[str, ...]]:
    """The classifier after each stage, the plan of each training stage, and what its partitions take, also in words;
    what cannot work is told here.

    Args:
        walk: what :func:`_walk_stages` gives.
    """
    classifiers, plans, partitions, lines = [], {}, {}, []
    for index, (after, trainer, params) in enumerate(walk):
        if trainer is not None:
            jax.eval_shape(trainer.init_state)
            plans[index] = trainer.plan
            partitions[index] = trainer.plan.summarize(params)
            lines += [f"{trainer.stage.name}: {line}" for line in trainer.plan.describe(params)]
        classifiers.append(after)
    return tuple(classifiers), plans, partitions, tuple(lines)


def _trainers(*setting: Any) -> list[StageTrainer]:
    """Of all training stages; the arguments are those of :func:`_walk_stages`."""
    return [trainer for _, trainer, _ in _walk_stages(*setting) if trainer is not None]


def _walk_stages(
    recipe: Recipe,
    backbone: Backbone,
    classifier: Classifier,
    variables: Variables,
    labels: np.ndarray,
    lengths: Sequence[StageLength],
    placement: Placement,
) -> Iterator[tuple[Classifier, StageTrainer | None, Any]]:
    """For each stage the classifier after it, its trainer if it trains, and parameters of the shapes before it.

    Args:
        labels: of the training images, which some heads hold.
    """
    depth_order, text = depth_order_of(backbone.module), backbone.text
    width = None if text is None else jax.eval_shape(lambda: text.image_projection).shape[1]
    for stage, length in zip(recipe.stages, lengths, strict=True):
        trainer = None
        if isinstance(stage, HeadStage):
            if isinstance(stage, LinearProbeStage):
                probe_weights(stage, labels, classifier.num_classes)
            config = head_config(stage, len(labels), width)
            if config is not None or classifier.head_config is not None:
                classifier = classifier.clone(head_config=config)
            variables = _with_zeros_for_head(classifier, variables, backbone.image_spec)
        else:
            trainer = StageTrainer(
                *(stage, classifier, variables, backbone.image_spec, length),
                class_weights=class_weights(stage.loss, labels, classifier.num_classes),
                plan=ParameterPlan.make(variables, stage.partitions, depth_order),
                placement=placement,
            )
        yield classifier, trainer, variables["params"]


def _with_zeros_for_head(classifier: Classifier, variables: Variables, spec: ImageSpec) -> Variables:
    _, shapes = init_shapes(classifier, jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), pick(shapes, head_paths(shapes)))
    return merge(without_head(variables), zeros)


def stage_length(stage: TrainStage | HeadStage, train: Split) -> StageLength:
    """Steps are optimizer steps, and a head that is fitted to features counts as one.

    An epoch is as many whole batches as there are.
    """
    if isinstance(stage, HeadStage):
        return StageLength(1)
    per_epoch = steps_per_epoch(train, stage.batch_size)
    if stage.steps is not None:
        total = stage.steps
    elif stage.epochs is not None:
        total = stage.epochs * per_epoch
    else:
        total = -(-(stage.examples or 0) // stage.batch_size)
    return StageLength(total, per_epoch, stage.batch_size)


def _training_images(config: DataConfig, train: Split, verify: bool) -> Split:
    size = config.cache_shortest_edge
    return train if size is None else cached(train, size, cache_folder(), verify=verify)


def _further_images(recipe: Recipe, name: str, splits: Splits, track: Track, verify: bool) -> Split:
    """All images of a set of ``evaluate.also``.

    Raises:
        DataError: it cannot be read, or some are training images, or of other classes.
    """
    config = DataConfig(source=recipe.evaluate.also[name]).with_columns_of(recipe.data)
    try:
        images = read_known_images(config, None, splits.class_names, splits.multi_label, track, verify=verify).images
    except DataError as error:
        raise DataError(f"evaluate.also.{name}: {error}") from None
    assert images.stats is not None
    assert splits.train.stats is not None
    if shared := int(np.isin(images.stats.pixel_hash, splits.train.stats.pixel_hash).sum()):
        raise DataError(
            f"evaluate.also.{name}: {shared} of its {len(images)} images are training images, which measure nothing; "
            "give others"
        )
    return images


def _on_host(backbone: Backbone) -> Backbone:
    text = backbone.text
    if text is not None:
        text = replace(text, variables=jax.device_get(text.variables))
    return replace(backbone, variables=jax.device_get(backbone.variables), text=text)
