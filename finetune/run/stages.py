"""The stages of a run, by their type, and the zero-shot head before them."""

from __future__ import annotations

import jax
import numpy as np

from finetune.models.zero_shot import zero_shot_head
from finetune.recipe import LinearProbeStage
from finetune.run.session import RunSession
from finetune.run.train_stage import TrainStageRun
from finetune.training.linear_probe import fit_linear_probe
from finetune.trees import merge

_ZERO_SHOT_SAMPLE = 256  # training images (without their labels) that set the zero-shot head's temperature


def zero_shot(session: RunSession) -> None:
    """Makes the head of the class names, and measures it."""
    setup = session.setup
    with session.progress.timed("zero_shot"):
        train = setup.splits.train
        sample = train.take(np.arange(0, len(train), max(1, len(train) // _ZERO_SHOT_SAMPLE)))
        features = session.features(sample, "zero_shot")
        kernel = zero_shot_head(setup.backbone, setup.splits.class_names, setup.recipe.head.templates, features)
        _set_head(session, kernel, session.variables["params"]["head"]["bias"])
    session.measure("zero_shot")


def run_stage(session: RunSession, index: int) -> None:
    """One stage, from its beginning or from where it was interrupted, with its test result.

    Raises:
        Interrupted: a signal came; the state is saved.
        Diverged: loss, gradients or weights are no longer finite.
    """
    stage, score = session.setup.recipe.stages[index], None
    with session.progress.timed(stage.name):
        if isinstance(stage, LinearProbeStage):
            _linear_probe(session, stage)
        else:
            score = TrainStageRun(session, stage, index).run()
    session.measure(stage.name, score)
    session.save_end(index)


def _linear_probe(session: RunSession, stage: LinearProbeStage) -> None:
    setup = session.setup
    train, num_classes = setup.splits.train, len(setup.splits.class_names)
    session.display.say(f"{stage.name}: logistic regression on {len(train)} feature vectors")
    features = session.features(train, stage.name)
    with session.display.busy(f"{stage.name}: fitting"):
        kernel, bias, l2 = fit_linear_probe(features, train.labels, num_classes, stage.l2, seed=setup.recipe.seed)
        _set_head(session, kernel, bias)
    session.folder.log({"stage": stage.name, "split": "train", "l2": l2})


def _set_head(session: RunSession, kernel: jax.Array, bias: jax.Array) -> None:
    session.variables = merge(session.variables, {"params": {"head": {"kernel": kernel, "bias": bias}}})
