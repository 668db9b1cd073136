"""A recipe for one's own images: what is trained follows from how many there are, and how long from the time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from finetune.compiled import keep_compiled_programs
from finetune.data.splits import Splits, load_splits
from finetune.distributed.sharding import Placement, on_all_devices
from finetune.errors import ModelError, RecipeError
from finetune.files import free_gigabytes
from finetune.foreign_errors import foreign_errors_translated
from finetune.models.backbone import Backbone
from finetune.models.build import attach_head, open_backbone
from finetune.models.classifier import Classifier
from finetune.models.depth import DepthOrder, depth_order_of
from finetune.recipe import DataConfig, PretrainedConfig, Recipe, TrainStage, read_data_config
from finetune.report.mirrored import may_be_mirrored
from finetune.report.plan import make_trainer
from finetune.run.features import RunFeatures
from finetune.run.progress import Progress
from finetune.training.features import extraction_batch_size
from finetune.training.flops import count_lowered
from finetune.training.frozen_cache import decide_cache
from finetune.training.memory import USABLE, device_memory, largest_batch, step_cost
from finetune.training.stage_trainer import StageTrainer
from finetune.trees import Variables, paths_of
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
_BACKWARD = 1.3  # how much more time a training step's FLOPs take than those of a forward pass


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
    if not minutes > 0:
        raise RecipeError(f"minutes: a run takes some; received {minutes:g}")
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
            recipe = chooser.recipe(choice.trains, choice.epochs, chooser.parts(choice))
    classes, images = len(splits.class_names), len(splits.train)
    counted = f"{images:,} training images of {classes} classes, {chooser.of_each:.3g} of each"
    speed = f"{backbone} computes {chooser.speed:.3g} images a second here"
    took = max(1, round(choice.seconds / 60))
    time_said = (
        f"about {took} of {minutes:g} minutes" if took <= minutes else f"about {took} minutes, more than {minutes:g}"
    )
    lines = f"{counted}; {speed}{remark}", f"{choice.reason}; {time_said}"
    return ChosenRecipe(recipe, lines, choice.seconds)


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


class _Chooser:
    """Recipes for a backbone and images, and what they take.

    Attributes:
        of_each: training images of the average class.
        speed: images per second of the backbone alone.
    """

    def __init__(self, data: DataConfig, splits: Splits, source: str, name: str, seed: int, display: Progress) -> None:
        self._data, self._splits, self._source, self._name, self._seed = data, splits, source, name, seed
        self.of_each = len(splits.train) / len(splits.class_names)
        self._backbone: Backbone = open_backbone(PretrainedConfig(source=source), seed=seed)
        self._placement: Placement = on_all_devices()
        recipe = self.recipe("probe", 0)
        classifier, variables = attach_head(self._backbone, recipe.head, len(splits.class_names), seed=seed)
        self._classifier: Classifier = classifier
        self._variables: Variables = variables
        spec, most = self._backbone.image_spec, recipe.evaluate.batch_size
        features = RunFeatures(spec, most, display, lambda when: None, self._placement)
        extractor, began = features.head_extractor(classifier, variables), time.monotonic()
        self.speed = extractor.images_per_second()
        self._compile_seconds = time.monotonic() - began - 3 * extractor.batch_size / self.speed
        self._flops_per_second = self.speed * extractor.flops_per_image
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
        wanted, too_slow = wanted_epochs(len(self._splits.train)), ""
        for trains, least in _IMAGES_FOR.items():
            if self.of_each < least or (trains == "last_blocks" and self._last_blocks is None):
                continue
            fixed, epoch = self._seconds(trains, wanted)
            epochs = min(wanted, int((seconds - fixed) / epoch))
            if epochs >= min(wanted, _EPOCHS[0]):
                return _Choice(trains, epochs, fixed + epochs * epoch, self._reason(trains, epochs, too_slow))
            minutes = int(np.ceil((fixed + wanted * epoch) / 60)) + 1
            too_slow = too_slow or f" (to train {_IN_WORDS[trains]} takes about {minutes} minutes)"
        reason = f"a linear probe alone{too_slow}"
        if not too_slow:
            reason = f"a linear probe alone, as there are fewer than {_IMAGES_FOR['last_blocks']} images of each class"
        return _Choice("probe", 0, self._seconds("probe", 0)[0], reason)

    def _reason(self, trains: Trains, epochs: int, too_slow: str) -> str:
        batches = f"for {epochs} epochs in batches of {self.batch_size}"
        few = ""
        if trains == "last_blocks" and not too_slow:
            few = f", as there are fewer than {_IMAGES_FOR['all']} images of each class"
        return f"a linear probe, then {_IN_WORDS[trains]} {batches}{few}{too_slow}"

    def _seconds(self, trains: Trains, epochs: int) -> tuple[float, float]:
        """That a run takes beside the epochs of its last stage, and one of these."""
        splits = self._splits
        validation = len(splits.validation) if splits.validation is not None else 0
        passes = len(splits.train) + 2 * (validation + len(splits.test))
        if trains == "probe":
            return 4 * self._compile_seconds + passes / self.speed, 0.0
        stage = self.recipe(trains, epochs).stages[-1]
        assert isinstance(stage, TrainStage)
        once, step = self._flops(stage)
        fixed = 4 * self._compile_seconds * (1 + _BACKWARD) + len(splits.train) * once / self._flops_per_second
        fixed += (passes + len(splits.test) + _EVALUATIONS * validation) / self.speed
        return fixed, len(splits.train) * step * _BACKWARD / self._flops_per_second + validation / self.speed

    def _flops(self, stage: TrainStage) -> tuple[float, float]:
        """Of each training image: those that the stage takes once, and those of a step."""
        trainer, spec = self._trainer(stage), self._backbone.image_spec
        images, free = len(self._splits.train), free_gigabytes()
        size = self._placement.round_up(extraction_batch_size(stage.batch_size))
        decision = decide_cache(trainer, spec, size, passes=float(stage.epochs or 0), images=images, free_gb=free)
        if decision.use and decision.cost is not None:
            return decision.cost.views * decision.cost.prefix_flops, decision.cost.step_flops
        return 0.0, step_flops(self._trainer(stage), spec.shape) / stage.batch_size

    def _trainer(self, stage: TrainStage) -> StageTrainer:
        return make_trainer(stage, self._classifier, self._variables, self._backbone, self._placement)

    def parts(self, choice: _Choice) -> int:
        """Into how many a batch has to be divided, so that a step fits the memory."""
        if choice.trains == "probe":
            return 1
        stage = self.recipe(choice.trains, choice.epochs).stages[-1]
        assert isinstance(stage, TrainStage)
        trainer, spec = self._trainer(stage), self._backbone.image_spec
        cost = step_cost(trainer, spec, stage.batch_size)
        if cost.bytes["peak"] <= USABLE * device_memory():
            return 1
        fits, shards = largest_batch(trainer, spec, cost) or 1, trainer.placement.batch_shards
        return next((n for n in _powers(stage.batch_size // shards) if stage.batch_size // n <= fits), 1)

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
            "backbone": {"source": self._source},
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
        if "batch_stats" in self._backbone.variables:
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
        if "batch_stats" in self._backbone.variables:
            return 3e-4  # better than 1e-4 and 1e-3 for MobileNetV2 on 6 x 60 photographs
        return float(f"{3e-5 * 384 / self._backbone.num_features:.1g}")


_IN_WORDS: Mapping[Trains, str] = {"all": "all parameters", "last_blocks": "the last quarter of the blocks"}


def wanted_epochs(images: int) -> int:
    """Passes over the training images where there is time: fewer where an epoch has more steps."""
    least, most = _EPOCHS
    return int(np.clip(round(most * (_EPOCHS_OF / images) ** 0.5), least, most))


def step_flops(trainer: StageTrainer, shape: tuple[int, ...]) -> float:
    """Of one training step, traced and not compiled."""
    size = trainer.stage.batch_size
    sets = trainer.stage.loss.name == "binary_cross_entropy"
    label = ((size, trainer.num_classes), jnp.float32) if sets else ((size,), jnp.int32)
    batch = {"image": jax.ShapeDtypeStruct((size, *shape), jnp.uint8), "label": jax.ShapeDtypeStruct(*label)}
    step: Any = trainer.step
    return count_lowered(step.trace(*trainer.shapes(), trainer.placement.batch_shapes(batch)))


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to the most."""
    return [1 << i for i in range(most.bit_length()) if 1 << i <= most]
