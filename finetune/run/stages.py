"""The stages of a run, by their type, and the head before them."""

from __future__ import annotations

from contextlib import closing
from copy import deepcopy

import numpy as np

from finetune.distributed.processes import arrays_from_primary
from finetune.errors import Interrupted
from finetune.models.classifier import head_paths, without_head
from finetune.models.zero_shot import text_classifier
from finetune.recipe import HeadStage
from finetune.run.heads import FittingData, fit_head
from finetune.run.interpolation import remember_start
from finetune.run.session import RunSession
from finetune.run.train_stage import TrainStageRun
from finetune.trees import merge

_ZERO_SHOT_SAMPLE = 256  # training images (without their labels) that set the zero-shot head's temperature


def measure_first_head(session: RunSession) -> None:
    """Measures the head before the first stage: the one of the class names, which it makes, or the pretrained one."""
    name = session.setup.recipe.head.init
    with session.progress.timed(name):
        if name == "zero_shot":
            _zero_shot(session)
        session.evaluate_from_features(head_paths(session.variables))
    session.measure(name)
    remember_start(session, -1)


def _zero_shot(session: RunSession) -> None:
    setup = session.setup
    train = setup.splits.train
    if len(train) > _ZERO_SHOT_SAMPLE:
        train = train.take(np.arange(0, len(train), len(train) // _ZERO_SHOT_SAMPLE))
    features = session.head_inputs(train, "zero_shot")
    text = text_classifier(setup.backbone, setup.splits.class_names, setup.recipe.head.templates)
    bias = session.variables["params"]["head"]["bias"]
    kernel = arrays_from_primary(lambda: {"kernel": text.kernel(features)})["kernel"]
    head = setup.placement.put({"kernel": kernel, "bias": bias})
    session.variables = merge(session.variables, {"params": {"head": head}})


def run_stage(session: RunSession, index: int) -> None:
    """One stage, from its beginning or from where it was interrupted, with its test result.

    Raises:
        Interrupted: a signal came; the state is saved.
        Diverged: loss, gradients or weights are no longer finite.
    """
    stage, score, training = session.setup.recipe.stages[index], None, None
    session.evaluator = None
    with session.progress.timed(stage.name):
        if isinstance(stage, HeadStage):
            _fit_head(session, stage, index)
        else:
            training = TrainStageRun(session, stage, index)
            with closing(training.batches):  # with their threads and processes
                score = training.run()
    before = deepcopy(session.progress)
    try:
        session.measure(stage.name, score)
    except Interrupted:
        session.progress = before
        if training is not None:  # a head is fitted again, to features that are there
            training.save_trained()
        raise
    remember_start(session, index)
    session.save_end(index)


def _fit_head(session: RunSession, stage: HeadStage, index: int) -> None:
    """A head from the features of the training images."""
    setup, splits = session.setup, session.setup.splits
    session.display.say(f"{stage.name}: {stage.type} on {len(splits.train):,} feature vectors")
    train = session.head_inputs(splits.train, stage.name)
    held_out = None
    if splits.validation is not None:
        held_out = (session.head_inputs(splits.validation, f"{stage.name}: validation"), splits.validation.labels)
    classes = len(splits.class_names)
    data = FittingData(train, splits.train.labels, held_out, classes, setup.recipe.seed, setup.placement)
    with session.display.busy(f"{stage.name}: fitting"):
        fitted = fit_head(stage, data, setup.text)  # on each process alike
    head = setup.placement.put(arrays_from_primary(lambda: fitted.variables))
    for line in fitted.lines:
        session.display.say(f"{stage.name}: {line}")
    session.log({"stage": stage.name, "split": "train", **fitted.facts})
    session.classifier = setup.classifiers[index]
    session.variables = merge(without_head(session.variables), head)
    session.evaluate_from_features(head_paths(session.variables))
