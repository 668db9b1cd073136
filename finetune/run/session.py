"""A run under way: what is trained so far, and everything that is measured, logged and saved of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from signal import Signals
from typing import Any, NoReturn

import jax
import numpy as np

from finetune.data.labeled_images import Split
from finetune.distributed.processes import Poll, from_primary, is_primary, process_count
from finetune.errors import CheckpointError, Diverged
from finetune.evaluation.calibration import describe_calibration, describe_thresholds, fit_confidence
from finetune.evaluation.metrics import Evaluation, evaluate, value_of_score
from finetune.evaluation.novelty import fit_novelty_to
from finetune.evaluation.reliability import describe_reliability
from finetune.evaluation.steps import EvalStep, make_eval_step
from finetune.evaluation.verdict import compare_results, conclude, describe_result
from finetune.export.bundle import save_bundle
from finetune.export.card import CardFacts
from finetune.export.confidence import Confidence
from finetune.export.novelty import Novelty
from finetune.folder.run_folder import FINISHED, RunFolder
from finetune.models.classifier import Classifier, without_head
from finetune.run.card import card_facts
from finetune.run.continuation import Continuation
from finetune.run.features import FeatureEvaluator, RunFeatures
from finetune.run.page import write_report
from finetune.run.predictions import Predictions
from finetune.run.progress import Progress
from finetune.run.resume import Kept, RunProgress, Snapshot
from finetune.run.run_trackers import RunTrackers
from finetune.run.saved_states import find_state
from finetune.run.setup import RunSetup
from finetune.run.shared_checkpoints import SharedCheckpoints
from finetune.run.weight_changes import compare_frozen
from finetune.signals import StopSignal
from finetune.trees import Variables, fetch, merge


class RunSession:
    """A run under way.

    Attributes:
        classifier: with the head that it has by now.
        variables: the classifier's, as far as the run is.
        features: of the run's images.
        evaluator: for as long as a stage evaluates from what is frozen; None where it evaluates images.
        progress: how far that is.
        carried: the optimizer state that the stage before left for the next one; None where there is none.
        interpolation: what the summary says of it; None where there was none.
        trackers: told of all that is logged.
    """

    def __init__(
        self,
        setup: RunSetup,
        folder: RunFolder,
        checkpoints: SharedCheckpoints,
        display: Progress,
        signal: StopSignal,
        progress: RunProgress,
        trackers: RunTrackers,
    ) -> None:
        self.setup, self.folder, self.checkpoints = setup, folder, checkpoints
        self.display, self.signal, self.progress, self.trackers = display, signal, progress, trackers
        self.classifier: Classifier = setup.classifier
        self.variables: Variables = setup.variables
        self.carried: Any = None
        self.interpolation: dict[str, Any] | None = None
        self.features = RunFeatures(setup.spec, setup.recipe.evaluate.batch_size, display, self.check, setup.placement)
        self.evaluator: FeatureEvaluator | None = None
        self._predictions = Predictions(folder.predictions, setup.splits.test)
        self._poll = Poll()
        self._eval_step: tuple[Classifier, EvalStep] | None = None

    def restore(self, continuation: Continuation | None = None) -> None:
        """Goes to the newest saved state, if there is one; those that are damaged are named, and removed.

        Args:
            continuation: with what a run that was there before goes on.

        Raises:
            CheckpointError: all are damaged, or none can be gone on from with longer stages.
        """
        states = self.checkpoints.own
        record = from_primary(
            lambda: states and find_state(self.setup, self.folder, states, self.display, continuation)
        )
        if record is None:
            return
        newest, saved = record["step"], RunProgress.from_json(record["progress"])
        self.variables = merge(without_head(self.variables), self.checkpoints.variables(newest))
        if saved.stage >= 0:
            self.classifier = self.setup.classifiers[saved.stage]
        self.progress = replace(saved, seconds=saved.seconds | self.progress.seconds)  # this time's loading
        if saved.point is not None:
            self.display.say(f"resuming at step {newest}")

    @property
    def step(self) -> int:
        """Done by now, of all stages."""
        point = self.progress.point
        return self.setup.first_step(self.progress.next_stage) + (point.step if point else 0)

    def log(self, record: Mapping[str, Any]) -> None:
        """To the folder's log, and to those who follow it."""
        self.folder.log(record)
        self.trackers.log(record)

    def check(self, when: str) -> None:
        """Where all processes are at the same place: raises Interrupted on all if a signal has come to one.

        Args:
            when: for the message.
        """
        if process_count() > 1:
            numbers = self._poll(self.signal.received or 0)
            if not numbers or not any(numbers):
                return
            self.signal.received = Signals(max(numbers))
        self.signal.check(when)

    @property
    def metric(self) -> str:
        """Name of the metric that chooses among steps and stages."""
        default = "mean_average_precision" if self.setup.splits.multi_label else "accuracy"
        return self.setup.recipe.evaluate.metric or default

    def evaluate(self, variables: Variables, split: Split, name: str, keep_logits: bool = False) -> Evaluation:
        if self.evaluator is not None:
            try:
                return self.evaluator(variables, split, name, keep_logits)
            except CheckpointError as error:  # no room
                self.display.say(f"{error}; evaluated from images")
        setup = self.setup
        if self._eval_step is None or self._eval_step[0] is not self.classifier:
            self._eval_step = self.classifier, make_eval_step(self.classifier, setup.spec, setup.placement)
        step, batch_size = self._eval_step[1], setup.recipe.evaluate.batch_size
        track = self.display.track
        return evaluate(step, variables, split, setup.spec, batch_size, track, name, keep_logits, setup.placement)

    def evaluate_from_features(self, varying: frozenset[str]) -> None:
        """From now on, evaluates from what is computed once; ``varying`` are the variables that change."""
        most = self.setup.recipe.evaluate.batch_size
        self.evaluator = self.features.evaluator(self.classifier, self.variables, varying, most)

    def head_inputs(self, split: Split, name: str) -> np.ndarray:
        """The features that the head reads, float32 [n, num_features].

        Raises:
            Diverged: some are not finite.
        """
        features = self.features.head_inputs(self.classifier, self.variables, split, name)
        if not np.isfinite(features).all():
            self.diverge(f"{name}: the backbone's features are not finite: its weights are not, or they overflow")
        return features

    def measure(self, name: str, score: float | None = None, *, keep: bool = True) -> None:
        """Appends the test result of the present variables, and keeps them unless an earlier stage's are better.

        Args:
            score: on the validation images, where it is known already.
            keep: they are not those of an earlier stage.
        """
        evaluation = self._measure_test(name)
        metric = evaluation.metric.replace("_", " ")
        self.display.say(f"{name}: test {metric} {evaluation.value():.4f} on {evaluation.n} images")
        self._measure_also(name)
        if not keep:
            return
        confidence = calibration = None
        if (images := self.setup.splits.validation) is not None:
            validation = self.evaluate(self.variables, images, f"{name}: validation", keep_logits=True)
            if score is None:
                self.log({"stage": name, "split": "validation", **validation.to_json()})
                score = validation.score(self.metric)
            confidence, calibration = self._calibrate(name, validation, evaluation)
        self.keep(name, score, confidence, calibration)

    def _calibrate(
        self, name: str, validation: Evaluation, test: Evaluation
    ) -> tuple[Confidence | None, dict[str, Any] | None]:
        """What the validation images say of the probabilities, and what it comes to on both splits."""
        splits, method = self.setup.splits, self.setup.recipe.evaluate.calibration
        assert splits.validation is not None
        assert validation.logits is not None
        assert test.logits is not None
        if not np.isfinite(validation.logits).all():
            return None, None
        novelty, features = self._fit_novelty(name, splits.validation)
        confidence = fit_confidence(validation.logits, splits.validation.labels, method, novelty, features)
        measured = {
            "validation": (validation.logits, splits.validation.labels),
            "test": (test.logits, splits.test.labels),
        }
        facts: dict[str, Any]
        if splits.multi_label:
            facts = describe_thresholds(confidence, *measured["test"])
        else:
            facts = {split: describe_calibration(confidence, *pair) for split, pair in measured.items()}
        return confidence, {"method": method, **facts, "reliability": describe_reliability(confidence, measured)}

    def _fit_novelty(self, name: str, validation: Split) -> tuple[Novelty, np.ndarray | None]:
        """The score of novelty, and the features of the validation images where it reads them."""
        kind, train = self.setup.recipe.evaluate.unknown, self.setup.splits.train
        return fit_novelty_to(kind, train, validation, lambda images: self.head_inputs(images, f"{name}: {kind}"))

    def _measure_test(self, name: str) -> Evaluation:
        """Appends the test result of the present variables, beside that of the step before."""
        test = self.setup.splits.test
        evaluation = self.evaluate(self.variables, test, f"{name}: test", keep_logits=True)
        result = {"name": name, "split": "test", **describe_result(evaluation, test.labels)}
        if is_primary():
            self._compare(name, result, evaluation)
        self.progress.results.append(result)
        self.log({"stage": name, **result})
        return evaluation

    def _compare(self, name: str, result: dict[str, Any], evaluation: Evaluation) -> None:
        """Adds to a step's result how it differs from that of the step before, and keeps what it says."""
        earlier = [step["name"] for step in self.progress.results]
        before = self._predictions.logits(earlier[-1]) if earlier else None
        if earlier and before is None:
            self.display.say(f"{self.folder.predictions}: what {earlier[-1]} says is missing or damaged: not compared")
        assert evaluation.logits is not None
        if before is not None:
            labels = self.setup.splits.test.labels
            result["paired"] = compare_results(earlier[-1], before, evaluation.logits, labels)
        self._predictions.add(name, evaluation.logits, earlier)

    def _measure_also(self, name: str) -> None:
        """Appends the results on the further sets."""
        for further, images in self.setup.also.items():
            evaluation = self.evaluate(self.variables, images, f"{name}: {further}", keep_logits=True)
            result = {"name": name, "split": further, **describe_result(evaluation, images.labels)}
            self.progress.also.setdefault(further, []).append(result)
            self.log({"stage": name, **result})

    def keep(
        self,
        name: str,
        score: float | None,
        confidence: Confidence | None = None,
        calibration: dict[str, Any] | None = None,
    ) -> None:
        """Saves the model of a stage, unless that of an earlier stage is better on the validation images."""
        kept = self.progress.kept
        if kept is not None and None not in (kept.score, score) and (score or 0.0) < (kept.score or 0.0):
            ours, theirs = (value_of_score(self.metric, value or 0.0) for value in (score, kept.score))
            self.display.say(
                f"{name}: worse on the validation images than {kept.stage} ({self.metric.replace('_', ' ')} "
                f"{ours:.4g} against {theirs:.4g}): the model of {kept.stage} is kept"
            )
            return
        self.folder.check_ours()
        variables = self.variables if process_count() == 1 else jax.tree.map(fetch, self.variables)
        with self.display.busy("saving the model"):
            weights = from_primary(
                lambda: save_bundle(
                    self.folder.model,
                    self.classifier,
                    variables,
                    backbone=self.setup.backbone,
                    class_names=self.setup.splits.class_names,
                    multi_label=self.setup.splits.multi_label,
                    confidence=confidence,
                    card=self._card(name, calibration),
                )
            )
        self.progress.kept = Kept(name, score, weights, calibration)

    def _card(self, name: str, calibration: dict[str, Any] | None) -> CardFacts:
        measured = [result for result in self.progress.results if result["name"] == name]
        also = {
            further: result
            for further, results in self.progress.also.items()
            for result in results
            if result["name"] == name
        }
        setup = self.setup
        return card_facts(
            setup.recipe,
            setup.splits,
            setup.backbone.license,
            result=measured[-1] if measured else None,
            also=also,
            calibration=calibration,
        )

    def finish(self, frozen_sha256: dict[str, str]) -> dict[str, Any]:
        """Writes the summary and then the report; gives the summary."""
        frozen = compare_frozen(frozen_sha256, self.setup.hash_frozen(self.variables))
        return dict(from_primary(lambda: self._write(self._summarize(frozen))))

    def _summarize(self, frozen: dict[str, Any]) -> dict[str, Any]:
        splits, kept = self.setup.splits, self.progress.kept
        assert kept is not None
        validation = None if kept.score is None else value_of_score(self.metric, kept.score)
        return {
            "name": self.setup.recipe.name,
            "status": FINISHED,
            "results": self.progress.results,
            "also": self.progress.also,
            "kept": {"stage": kept.stage, "metric": self.metric, "validation": validation},
            "calibration": kept.calibration,
            "interpolation": self.interpolation,
            "verdict": conclude(
                self.progress.results,
                kept.stage,
                chosen=kept.score is not None,
                interpolation=self.interpolation,
            ),
            "weights_sha256": kept.weights_sha256,
            "frozen_unchanged": not frozen["changed"],
            "frozen": frozen,
            "weight_change": self.progress.weight_change,
            "layer_change": self.progress.layer_change,
            "skipped_images": {name: splits.skipped_from(name) for name in splits.named()},
            "seconds": {name: round(value, 2) for name, value in self.progress.seconds.items()},
        }

    def _write(self, summary: dict[str, Any]) -> dict[str, Any]:
        self.folder.write_summary(summary)
        write_report(self.setup, self.folder, summary, self.display)
        return summary

    def save_within(self, index: int, snapshot: Snapshot) -> None:
        """A stage that goes on."""
        progress = self.progress.at(index, snapshot.point, *self.folder.metrics.extent())
        score = None if snapshot.score is None else 2 * index + snapshot.score  # above those of earlier stages
        step = self.setup.first_step(index) + snapshot.point.step
        changing = self.setup.changed(snapshot.variables)
        with self.display.busy("saving"):
            self.checkpoints.save(step, changing, snapshot.state, progress.to_json(), score)

    def save_end(self, index: int) -> None:
        """A stage that has ended."""
        self.progress = self.progress.at(index, None, *self.folder.metrics.extent())
        state = None if self.carried is None else {"opt_state": self.carried}
        changing = self.setup.changed(self.variables)
        with self.display.busy("saving"):
            self.checkpoints.save(self.setup.first_step(index + 1), changing, state, self.progress.to_json())

    def diverge(self, what: str) -> NoReturn:
        """Ends the run; states and models that were saved before stay, and the summary says what happened."""
        self.checkpoints.wait()
        kept = self.progress.kept
        summary = {
            "name": self.setup.recipe.name,
            "status": "diverged",
            "reason": what,
            "results": self.progress.results,
            "kept": None if kept is None else {"stage": kept.stage},
        }
        if is_primary():
            self._write(summary)
        saved = f"the model of {kept.stage} is kept" if kept else "no earlier stage has left a model to keep"
        raise Diverged(f"{self.folder.directory}: {what}; {saved}")
