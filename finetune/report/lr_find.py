"""A range test of the learning rate (Smith 2015, arXiv:1506.01186): it grows until training breaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax

from finetune.compiled import keep_compiled_programs
from finetune.errors import CheckpointError, DataError, RecipeError, nearest
from finetune.foreign_errors import foreign_errors_translated
from finetune.optim.schedules import StageLength
from finetune.page.figures import Chart, Line, line_chart, save_charts
from finetune.recipe import Recipe, TrainStage
from finetune.recipe.optimization import Constant
from finetune.run.progress import Progress
from finetune.run.setup import RunSetup, prepare_run
from finetune.training.losses import class_weights
from finetune.training.stage_trainer import StageTrainer

LOWEST, HIGHEST = 1e-3, 1e3  # of the factors on the recipe's learning rates
_WINDOW = 0.1  # of the steps, that a moving average reaches over: as far ahead as back, so that it does not lag
_BROKEN = 3.0  # times the least loss, where the test ends


@dataclass(frozen=True)
class RangeTest:
    """What the steps came to.

    Attributes:
        factors: on the recipe's learning rates, of each step.
        losses: of each step, in nats; smoothed: their centred moving average.
        suggested: the factor where the smoothed loss falls fastest; None where it falls nowhere.
    """

    factors: list[float]
    losses: list[float]
    smoothed: list[float]
    suggested: float | None

    @classmethod
    def of(cls, factors: Sequence[float], losses: Sequence[float]) -> RangeTest:
        reach = max(1, round(_WINDOW * len(losses) / 2))
        windows = [losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses))]
        smoothed = [float(np.mean(window)) for window in windows]
        return cls(list(factors), list(losses), smoothed, _steepest(factors, smoothed))


def _steepest(factors: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """Before the least of the smoothed losses."""
    end = int(np.argmin(smoothed)) + 1
    if end < 3:
        return None
    slopes = np.gradient(smoothed[:end], np.log(factors[:end]))
    steepest = int(np.argmin(slopes))
    return float(factors[steepest]) if slopes[steepest] < 0 else None


@foreign_errors_translated()
def find_learning_rate(
    recipe: Recipe,
    *,
    stage: str | None = None,
    steps: int = 100,
    figure: str | Path | None = None,
    data: Any = None,
    allow_local_code: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains a stage for some steps, while its learning rates grow from a thousandth of the recipe's to a thousand
    times those; the ratios between partitions stay. Nothing is saved but the figure.

    Args:
        stage: name of a training stage; by default the first. It starts from the weights before the first stage.
        steps: at least 20; fewer are taken where the loss breaks.
        figure: to draw the curve in; its suffix names the format.
        data: as of :func:`finetune.run`.

    Returns:
        Plain JSON values: ``stage``; ``factors``, ``losses`` and ``smoothed``, of each step; ``suggested``, the factor
        where the smoothed loss falls fastest (None where it falls nowhere); and ``partitions``: for each ``key`` in
        the recipe its ``name``, ``learning_rate`` and what is ``suggested``.

    Raises:
        RecipeError: no training stage of that name, or too few steps.
        FinetuneError: anything that would stop a run.
    """
    if steps < 20:
        raise RecipeError(f"steps: {steps} show no curve; give 20 or more")
    index, chosen = _choose(recipe, stage)
    keep_compiled_programs()
    with Progress(quiet) as display:
        setup = prepare_run(recipe, data=data, allow_local_code=allow_local_code, track=display.track)
        test = _run(setup, index, chosen, steps, display)
    if figure is not None:
        _draw(Path(figure), chosen.name, test)
    return {
        "stage": chosen.name,
        **vars(test),
        "partitions": [
            {
                "key": f"stages.{index}.partitions.{number}.learning_rate",
                "name": rule.label,
                "learning_rate": rule.learning_rate,
                "suggested": None if test.suggested is None else (rule.learning_rate or 0.0) * test.suggested,
            }
            for number, rule in enumerate(chosen.partitions)
            if not rule.frozen
        ],
    }


def _choose(recipe: Recipe, name: str | None) -> tuple[int, TrainStage]:
    stages = {stage.name: (index, stage) for index, stage in recipe.train_stages.items()}
    if not stages:
        raise RecipeError(f"{recipe.name}: no stage trains by gradient descent, so there is no learning rate to find")
    if name is None:
        return next(iter(stages.values()))
    if name not in stages:
        raise RecipeError(f"stage {name!r}: no training stage{nearest(name, stages)}; there are: {', '.join(stages)}")
    return stages[name]


def _run(setup: RunSetup, index: int, stage: TrainStage, steps: int, display: Progress) -> RangeTest:
    rules = [rule if rule.frozen else rule.model_copy(update={"schedule": Constant()}) for rule in stage.partitions]
    growth = math.log(HIGHEST / LOWEST) / (steps - 1)
    trainer = StageTrainer(
        stage.model_copy(update={"partitions": rules}),
        setup.classifier,
        setup.variables,
        setup.spec,
        StageLength(steps),
        seed=setup.recipe.seed + index,
        class_weights=class_weights(stage.loss, setup.splits.train.labels, setup.classifier.num_classes),
        pretrained=setup.backbone.variables["params"],
        placement=setup.placement,
    )
    trainer.scale_rates(optax.exponential_decay(LOWEST, 1, math.exp(growth)))
    losses: list[float] = []
    state = trainer.init_state()
    factors = [LOWEST * math.exp(growth * step) for step in range(steps)]
    with closing(setup.batches(index)) as batches:
        for _ in display.track(factors, f"{stage.name}: growing learning rates", steps):
            batch = trainer.placement.put_batch(next(batches))
            state, metrics = trainer.step(state, trainer.frozen, batch)
            loss = float(metrics["loss"]) / float(metrics["count"])
            if not math.isfinite(loss) or (losses and loss > _BROKEN * max(losses[0], min(losses) + 0.1)):
                break
            losses.append(loss)
    if not losses:
        raise DataError(f"{stage.name}: the loss of the first step is not finite: the weights or the images are not")
    return RangeTest.of(factors[: len(losses)], losses)


def _draw(file: Path, name: str, test: RangeTest) -> None:
    try:
        save_charts(file, [chart_of(name, test)])
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None


def chart_of(name: str, test: RangeTest) -> Chart:
    """Loss by the logarithm of the factor, and where it falls fastest."""
    exponents = [math.log10(factor) for factor in test.factors]
    lines = [
        Line("loss", list(zip(exponents, test.losses, strict=True)), 6),
        Line("smoothed", list(zip(exponents, test.smoothed, strict=True)), 0),
    ]
    if test.suggested is not None:
        at = math.log10(test.suggested)
        lines.append(Line("falls fastest", [(at, min(test.smoothed)), (at, max(test.smoothed))], 1, dashed=True))
    return line_chart(name, lines, "factor on the learning rates (log10)")
