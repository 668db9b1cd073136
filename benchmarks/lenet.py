"""What batch normalization costs LeNet: training images per second with it over without, side by side.

    python -m benchmarks.lenet           # prints what it writes to benchmarks/results/lenet.json

The recipes' own steps (batch 256, 28x28 grey) on one batch in memory, and the step of Flax's guide on BatchNorm,
written out by hand for the same network. Turns alternate; ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from finetune.images.spec import ImageSpec
from finetune.models.build import attach_head, open_backbone
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage, load_recipe
from finetune.training.stage_trainer import StageTrainer

TURNS, STEPS = 7, 40
OUTPUT = Path(__file__).parent / "results" / "lenet.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (256, 28, 28, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, 256).astype(np.int32),
    }
    sides = {"lenet": recipes_step("lenet"), "lenet_batchnorm": recipes_step("lenet_batchnorm"), "guide": guides_step()}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(TURNS + 1):  # the first compiles
        for name, take in sides.items():
            start = time.perf_counter()
            take(batch, STEPS)
            if turn:
                speeds[name].append(256 * STEPS / (time.perf_counter() - start))
    results = {
        "images_per_second": {name: round(statistics.median(values)) for name, values in speeds.items()},
        "batchnorm_over_plain": ratio(speeds["lenet_batchnorm"], speeds["lenet"]),
        "toolkit_over_guide": ratio(speeds["lenet_batchnorm"], speeds["guide"]),
    }
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Median, least and greatest over the turns."""
    values = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def recipes_step(name: str) -> Callable[[Any, int], None]:
    recipe = load_recipe(name)
    backbone = open_backbone(recipe.backbone)
    classifier, variables = attach_head(backbone, recipe.head, 10)
    stage = recipe.stages[0]
    assert isinstance(stage, TrainStage)
    training = StageTrainer(stage, classifier, variables, backbone.image_spec, StageLength(2000, 200, 256))
    return repeated(lambda state, batch: training.step(state, training.frozen, batch)[0], training.init_state())


def guides_step() -> Callable[[Any, int], None]:
    backbone = open_backbone(load_recipe("lenet_batchnorm").backbone)
    module: Any = backbone.module
    spec: ImageSpec = backbone.image_spec
    optimizer = optax.sgd(optax.cosine_decay_schedule(1.0, 2000))
    start = backbone.variables
    state = (start["params"], start["batch_stats"], optimizer.init(start["params"]))

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        params, batch_stats, opt_state = state

        def loss_fn(params: Any) -> Any:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, updates = module.apply(
                variables, spec.normalize(batch["image"]), train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), updates

        (_, updates), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        changes, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, changes), updates["batch_stats"], opt_state

    return repeated(step, state)


def repeated(step: Callable[[Any, Any], Any], state: Any) -> Callable[[Any, int], None]:
    """``take(batch, steps)``, which goes on from where it was and waits for the device once."""

    def take(batch: Any, steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state = step(state, batch)
        jax.block_until_ready(state)

    return take


if __name__ == "__main__":
    main()
