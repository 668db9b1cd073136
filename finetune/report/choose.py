"""A recipe for one's own images: what is trained follows from how many there are, and how long from the time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from finetune.compiled import keep_compiled_programs
from finetune.data.splits import Splits, load_splits
from finetune.distributed.sharding import Placement, on_all_devices
from finetune.errors import ModelError, RecipeError
from finetune.foreign_errors import foreign_errors_translated
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone
from finetune.models.build import attach_head, open_backbone
from finetune.models.depth import DepthOrder, depth_order_of
from finetune.recipe import DataConfig, PretrainedConfig, Recipe, TrainStage, read_data_config
from finetune.report.mirrored import may_be_mirrored
from finetune.report.stage_programs import StagePrograms
from finetune.report.stopwatch import time_steps
from finetune.run.features import RunFeatures
from finetune.run.progress import Progress
from finetune.run.setup import prepare_run
from finetune.training.memory import USABLE, device_memory, memory_of
from finetune.trees import paths_of
from finetune.weights.locate import locate

DEFAULT_BACKBONE = "facebook/dinov2-small"  # small, of strong features, Apache-2.0
BUNDLED_BACKBONE = "builtin:tiny-clip"
MINUTES = 10.0

Trains = Literal["probe", "last_blocks", "all"]

_IMAGES_FOR: dict[Trains, int] = {"all": 20, "last_blocks": 5}  # of each class, to train them
_LAST = 4  # a quarter of the blocks counts as the last ones
_VIEWS = 8  # augmented views of each image that are kept where the first blocks are frozen
_CHOOSES_BY_ACCURACY = 500  # validation images; of fewer, the loss says more
_EPOCHS = (4, 20)  # the fewest that are worth while, and the most
_EPOCHS_OF = 300  # images for which there are most epochs; of four times as many, half
_EVALUATIONS = 14  # of the validation images, beside one an epoch: the first, and those of interpolation
_PASSES: dict[Trains, float] = {"all": 3.0, "last_blocks": 0.75}  # that a training step is worth, at the least
_ENLARGED, _SMALL = 3, 0.75  # times that small images are enlarged at most; a share of the input that is worth it
_LOADING = 1.3  # how much longer images take that are read, too
_STEPS, _STEP_SECONDS = 3, 5.0  # timed ones of each program, and how long they may take


@dataclass(frozen=True)
class ChosenRecipe:
    """A recipe, and why it is that.

    Attributes:
        reasons: two lines: what there is to learn from, and what follows from that and from the time.
        seconds: that the run is expected to take.
    """

    recipe: Recipe
    reasons: tuple[str, str]
    seconds: float


@foreign_errors_translated()
def choose_recipe(
    data: DataConfig | str,
    *,
    backbone: str | None = None,
    minutes: float = MINUTES,
    name: str = "train",
    seed: int = 0,
    quiet: bool = False,
) -> ChosenRecipe:
    """A recipe for images, by their number, the backbone's speed on this machine, and the time there is.

    With fewer than 5 training images of a class, a linear probe; with fewer than 20, then the last quarter of the
    blocks; with more, then all parameters, each after the probe (LP-FT, Kumar et al. 2022, arXiv:2202.10054). What
    would take too long is left for the next cheaper one. The batch is one whose step fits the devices' memory.

    Args:
        data: the images; a text is their ``source``.
        backbone: a folder, a hub id, or ``builtin:tiny-clip``; by default DINOv2-small, or where that can be neither
            found nor fetched the bundled one.
        minutes: for the whole run. Reading the images once, for the probe, may take longer.
        name: the recipe's.
        seed: of the recipe.
        quiet: print nothing.

    Raises:
        FinetuneError: images or a backbone that cannot be used, or no time.
    """
    if not 0 < minutes < math.inf:
        raise RecipeError(f"minutes: give how many the run may take, above 0; received {minutes:g}")
    keep_compiled_programs()
    began, remark = time.monotonic(), ""
    if isinstance(data, str):
        data = read_data_config(data)
    if backbone is None:
        backbone, remark = _default_backbone()
    with Progress(quiet) as display:
        splits = load_splits(data, seed, track=display.track)
        with display.busy(f"measuring {backbone}"):
            chooser = _Chooser(data, splits, backbone, name, seed, display)
            choice = chooser.choose(minutes * 60 - (time.monotonic() - began))
            recipe = chooser.recipe(choice.trains, choice.epochs, choice.parts)
    classes, images = len(splits.class_names), len(splits.train)
    counted = f"{images:,} training images of {classes} classes, {describe_number(chooser.of_each)} of each"
    speed = f"{backbone} computes {describe_number(chooser.speed)} images a second here"
    took = max(1, round(choice.seconds / 60))
    time_said = (
        f"about {took} of {minutes:g} minutes" if took <= minutes else f"about {took} minutes, more than {minutes:g}"
    )
    lines = f"{counted}; {speed}{remark}", f"{choice.reason}; {time_said}"
    return ChosenRecipe(recipe, lines, choice.seconds)


def describe_number(value: float) -> str:
    """Two figures at least, and none after the point from 10 on."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def _default_backbone() -> tuple[str, str]:
    """It, and a remark where it is not the usual one."""
    try:
        locate(DEFAULT_BACKBONE)
    except ModelError:
        remark = f"; {DEFAULT_BACKBONE} is not here and cannot be fetched: give your own with --backbone"
        return BUNDLED_BACKBONE, remark
    return DEFAULT_BACKBONE, ""


@dataclass(frozen=True)
class _Choice:
    trains: Trains
    epochs: int
    seconds: float
    reason: str
    parts: int = 1


class _Cost(NamedTuple):
    """Seconds before the first epoch, and of one; and the parts of a batch that fit the memory."""

    once: float
    epoch: float
    parts: int


class _Chooser:
    """Recipes for a backbone and images, and what they take.

    Attributes:
        of_each: training images of the average class.
        speed: images per second of the backbone alone.
    """

    def __init__(self, data: DataConfig, splits: Splits, source: str, name: str, seed: int, display: Progress) -> None:
        self._data, self._splits, self._source, self._name, self._seed = data, splits, source, name, seed
        self.of_each = len(splits.train) / len(splits.class_names)
        self._image_size: int | None = None
        self._backbone: Backbone = open_backbone(PretrainedConfig(source=source), seed=seed)
        self._batch_norm = "batch_stats" in self._backbone.variables
        if self._batch_norm:  # tried for these
            self._image_size = size_for_small_images(self._backbone.image_spec, splits)
        if self._image_size is not None:
            self._backbone = open_backbone(PretrainedConfig(source=source, image_size=self._image_size), seed=seed)
        self._placement: Placement = on_all_devices()
        recipe = self.recipe("probe", 0)
        classifier, variables = attach_head(self._backbone, recipe.head, len(splits.class_names), seed=seed)
        spec, most = self._backbone.image_spec, recipe.evaluate.batch_size
        features = RunFeatures(spec, most, display, lambda when: None, self._placement)
        extractor, began = features.head_extractor(classifier, variables), time.monotonic()
        self.speed = extractor.images_per_second()
        self._compile_seconds = time.monotonic() - began - 3 * extractor.batch_size / self.speed
        self._display = display
        self._mirrors = self.of_each >= min(_IMAGES_FOR.values()) and may_be_mirrored(
            features, classifier, variables, splits.train, len(splits.class_names), seed
        )

    @property
    def batch_size(self) -> int:
        """About ten batches an epoch, of 8 to 64 images, which the devices can share."""
        wanted = 2 ** int(np.log2(max(8.0, min(64.0, len(self._splits.train) / 10))))
        return self._placement.round_up(wanted)

    def choose(self, seconds: float) -> _Choice:
        """What is worth training with so many images, if there is time for it."""
        images, began, too_slow = len(self._splits.train), time.monotonic(), ""
        wanted = wanted_epochs(images)
        fewest = min(wanted, _EPOCHS[0])
        for trains, least in _IMAGES_FOR.items():
            if self.of_each < least or (trains == "last_blocks" and self._last_blocks is None):
                continue
            fixed, epoch = self._fixed_seconds(), _PASSES[trains] * images / self.speed  # at the least
            parts = 1
            if fixed + fewest * epoch < seconds:
                measured = self._measure(trains, wanted)
                fixed, epoch, parts = fixed + measured.once, measured.epoch, measured.parts
            epochs = min(wanted, int((seconds - (time.monotonic() - began) - fixed) / epoch))
            if epochs >= fewest:
                return _Choice(trains, epochs, fixed + epochs * epoch, self._reason(trains, epochs, too_slow), parts)
            minutes = int(np.ceil((fixed + wanted * epoch) / 60)) + 1
            too_slow = too_slow or f" (to train {_IN_WORDS[trains]} takes about {minutes} minutes)"
        reason = f"a linear probe alone{too_slow}"
        if not too_slow:
            reason = f"a linear probe alone, as there are fewer than {_IMAGES_FOR['last_blocks']} images of each class"
        return _Choice("probe", 0, self._fixed_seconds(), reason)

    def _reason(self, trains: Trains, epochs: int, too_slow: str) -> str:
        batches = f"for {epochs} epochs in batches of {self.batch_size}"
        few = ""
        if trains == "last_blocks" and not too_slow:
            few = f", as there are fewer than {_IMAGES_FOR['all']} images of each class"
        return f"a linear probe, then {_IN_WORDS[trains]} {batches}{few}{too_slow}"

    def _fixed_seconds(self) -> float:
        """That a run takes beside its last stage: each image once for the probe, and what is evaluated."""
        splits = self._splits
        validation = len(splits.validation) if splits.validation is not None else 0
        images = len(splits.train) + _EVALUATIONS * validation + 3 * len(splits.test)
        return 4 * self._compile_seconds + _LOADING * images / self.speed

    def _measure(self, trains: Trains, epochs: int) -> _Cost:
        """Some steps of the last stage, in as few parts of the batch as fit the memory; the run finds them compiled."""
        recipe, room = self.recipe(trains, epochs), USABLE * device_memory()
        setup, stage = prepare_run(recipe, splits=self._splits), recipe.stages[-1]
        assert isinstance(stage, TrainStage)
        once, of_image, parts = 0.0, _PASSES[trains] / self.speed, 1
        for program in StagePrograms(setup, self._display).of(len(recipe.stages) - 1):
            began = time.monotonic()
            compiled = program.trace().lower().compile()
            once += time.monotonic() - began
            if (peak := memory_of(compiled)["peak"]) > room:
                parts = min(self.batch_size, max(parts, _power_above(peak / room)))
                continue
            step = program.make_step(compiled)
            seconds = time_steps(partial(step, None), _STEPS, _STEP_SECONDS).median / program.images
            if program.trains:
                of_image = seconds
            else:
                once += _LOADING * len(setup.train) * stage.kept_views * seconds
        validation = 0 if setup.splits.validation is None else len(setup.splits.validation)
        return _Cost(once, len(setup.train) * of_image + validation / self.speed, parts)

    @property
    def _last_blocks(self) -> tuple[DepthOrder, int] | None:
        """The backbone's order, and how many blocks are the last ones; None where it has no blocks."""
        order = depth_order_of(self._backbone.module)
        if order is None:
            return None
        blocks = order.num_blocks(paths_of(self._backbone.variables["params"]))
        return (order, -(-blocks // _LAST)) if blocks > 1 else None

    def recipe(self, trains: Trains, epochs: int, parts: int = 1) -> Recipe:
        """The recipe that trains so much for so long, in so many parts of a batch."""
        stages: list[dict[str, Any]] = [{"name": "probe", "type": "linear_probe"}]
        if trains != "probe":
            stages.append(self._finetune(trains, epochs, parts))
        document: dict[str, Any] = {
            "name": self._name,
            "seed": self._seed,
            "backbone": {"source": self._source, **({"image_size": self._image_size} if self._image_size else {})},
            "data": self._data.model_dump(mode="json"),
            "stages": stages,
        }
        validation = self._splits.validation
        if validation is not None and len(validation) < _CHOOSES_BY_ACCURACY:
            document["evaluate"] = {"metric": "loss"}
        return Recipe.model_validate(document)

    def _finetune(self, trains: Trains, epochs: int, parts: int) -> dict[str, Any]:
        several, accelerated = self._splits.multi_label, jax.default_backend() != "cpu"
        augment = {"random_resized_crop": {"scale": [0.5, 1.0]}, **({"hflip": 0.5} if self._mirrors else {})}
        return {
            "name": "finetune",
            "epochs": epochs,
            "batch_size": self.batch_size,
            "clip_grad_norm": 1.0,
            "ema_decay": 0.98,
            "loss": "binary_cross_entropy" if several else {"name": "cross_entropy", "label_smoothing": 0.1},
            "augment": augment,
            **({"frozen_cache": {"mode": "on", "views": min(_VIEWS, epochs)}} if trains == "last_blocks" else {}),
            **({"grad_accum_steps": parts} if parts > 1 else {}),
            **({"compute_dtype": "bfloat16"} if accelerated else {}),
            "partitions": self._partitions(trains),
        }

    def _partitions(self, trains: Trains) -> list[dict[str, Any]]:
        schedule = {"schedule": {"name": "cosine", "warmup": 0.1}}
        rate = self._learning_rate
        rules: list[dict[str, Any]] = [{"match": "head", "learning_rate": rate, **schedule}]
        rest = {"match": "backbone", "learning_rate": rate, "weight_decay": 0.01, **schedule}
        if self._batch_norm:
            rest["batch_norm"] = "frozen"  # few images have statistics of their own
        if trains == "last_blocks":
            assert self._last_blocks is not None
            order, count = self._last_blocks
            rules.append({"match": f"blocks[:-{count}]", "frozen": True})
            if 0 in order.depths(paths_of(self._backbone.variables["params"])).values():
                rules.append({"match": f"backbone/(?:{order.stem})", "frozen": True})
        return [*rules, rest]

    @property
    def _learning_rate(self) -> float:
        """Of Adam: in proportion to one over the width (Yang et al. 2022, arXiv:2203.03466)."""
        if self._batch_norm:
            return 3e-4  # better than 1e-4 for MobileNetV2 on 6 x 60 photographs
        return float(f"{3e-5 * 384 / self._backbone.num_features:.1g}")


_IN_WORDS: Mapping[Trains, str] = {"all": "all parameters", "last_blocks": "the last quarter of the blocks"}


def size_for_small_images(spec: ImageSpec, splits: Splits) -> int | None:
    """Edge of the model's input for images that are much smaller than it: more pixels would cost, and say nothing."""
    assert splits.train.stats is not None
    edge = float(np.median(np.minimum(splits.train.stats.width, splits.train.stats.height)))
    size = int(np.ceil(_ENLARGED * edge / 32)) * 32
    return size if size < _SMALL * min(spec.height, spec.width) else None


def wanted_epochs(images: int) -> int:
    """Passes over the training images where there is time: fewer where an epoch has more steps."""
    least, most = _EPOCHS
    return int(np.clip(round(most * (_EPOCHS_OF / images) ** 0.5), least, most))


def _power_above(share: float) -> int:
    """The least of 2, 4, 8, ... that divides something by more than this share of it."""
    return 2 ** max(1, int(np.ceil(np.log2(share))))
