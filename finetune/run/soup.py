"""A greedy soup: the mean of the weights of several runs (Wortsman et al. 2022, arXiv:2203.05482)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.data.augment import make_training_transform
from finetune.data.image_record import ImageRecord
from finetune.data.known_classes import read_known_images
from finetune.data.labeled_images import Split
from finetune.data.loader import training_batches
from finetune.data.splits import Splits, load_splits
from finetune.distributed.sharding import on_all_devices
from finetune.errors import CheckpointError, DataError
from finetune.evaluation.calibration import fit_confidence
from finetune.evaluation.metrics import Evaluation, evaluate, value_of_score
from finetune.evaluation.novelty import fit_novelty_to
from finetune.evaluation.steps import EvalStep, make_eval_step
from finetune.evaluation.verdict import compare_results, conclude, describe_result
from finetune.export.bundle import Bundle, load_bundle, save_bundle_like
from finetune.export.novelty import Novelty
from finetune.folder.run_folder import FINISHED, RunFolder
from finetune.recipe import DataConfig, Recipe, read_data_config
from finetune.run.card import card_facts
from finetune.run.features import RunFeatures
from finetune.run.predictions import Predictions
from finetune.run.progress import Progress
from finetune.run.result import RunResult
from finetune.tracking import Track, untracked
from finetune.training.running_statistics import differing_statistics, make_estimator
from finetune.trees import Variables, interpolate

SOUP = "soup"  # the step's name
_BATCHES = 50  # of training images, that statistics are estimated on


@dataclass(frozen=True)
class _Run:
    """A finished run whose model may go into the soup."""

    name: str
    folder: RunFolder
    recipe: Recipe
    splits: Splits


def make_soup(
    directories: Sequence[str | Path],
    output: str | Path,
    *,
    data: str | DataConfig | None = None,
    batch_norm: Literal["reestimate", "average"] = "reestimate",
    overwrite: bool = False,
    allow_local_code: bool = False,
    track: Track | None = None,
    say: Callable[[str], None] | None = None,
) -> RunResult:
    """Averages the models of finished runs, as long as that helps on validation images.

    The models are added one by one, from the best on validation to the worst; one that makes the mean worse is left
    out. They have to be of one network and of the same classes: runs of one recipe with other seeds or other options.

    Args:
        directories: folders of at least two runs.
        output: a new folder, which holds the soup as a run's folder holds its model.
        data: a source of validation images, all of which are used. By default those of the first run that no other
            run was trained on: runs with other seeds have other validation images, unless the data have a split of
            their own.
        batch_norm: running statistics that differ between the runs are estimated anew on training images
            (``reestimate``), or ``average``d like weights.
        overwrite: replace an earlier run in the output folder.
        allow_local_code: as in :func:`restore`.
        track: shows how far it is; by default nothing does.
        say: told what an earlier process has left in the output folder, and was put in order; by default nobody is.

    Returns:
        The output folder and its summary: ``results`` of each run's model and of the soup, on the test images of the
        first run; ``soup``: ``members`` (in the order in which they were added), ``left_out``, ``validation`` (of each
        run by itself), ``score`` of the soup, and ``statistics``; ``kept`` and ``verdict``.

    Raises:
        CheckpointError: a folder has no finished run, the runs have different networks or classes, or the output folder
            is in use.
        DataError: there are no images to choose on.
    """
    track = track or untracked
    folder = RunFolder(output)
    if any(Path(directory).resolve() == folder.directory.resolve() for directory in directories):
        raise CheckpointError(f"{output}: one of the runs; the soup needs a folder of its own")
    with folder.reserve("soup", overwrite=overwrite, say=say or (lambda _: None)):
        summary = _cook(directories, folder, data, batch_norm, overwrite, allow_local_code, track)
    return RunResult(folder.directory, summary, allow_local_code)


def _cook(
    directories: Sequence[str | Path],
    folder: RunFolder,
    data: str | DataConfig | None,
    batch_norm: str,
    overwrite: bool,
    allow_local_code: bool,
    track: Track,
) -> dict[str, Any]:
    """Chooses the runs, and writes the folder."""
    runs = _open(directories, track)
    pot = _Pot(runs, data, batch_norm, allow_local_code, track)
    order = sorted(runs, key=lambda run: -pot.scores[run.name])
    members, soup = [order[0].name], pot.load(order[0])
    best = pot.scores[order[0].name]
    for run in order[1:]:
        candidate = interpolate(soup, pot.load(run), 1 / (len(members) + 1))  # the mean of all
        score = pot.measure(pot.served(candidate), f"with {run.name}").score(pot.metric)
        if score >= best:
            members, soup, best = [*members, run.name], candidate, score
    about = {**runs[0].folder.about(), "soup_of": [str(run.folder.directory) for run in runs]}
    folder.start(runs[0].recipe, about, images=ImageRecord.of(runs[0].splits), overwrite=overwrite)
    if len(members) > 1:
        soup = pot.served(soup)
    return _finish(folder, pot, members, soup, best)


def _open(directories: Sequence[str | Path], track: Track) -> list[_Run]:
    if len(directories) < 2:
        raise CheckpointError("a soup needs the folders of at least two runs")
    runs = []
    for directory in directories:
        folder = RunFolder(directory)
        if not folder.holds_run() or folder.summary() is None:
            raise CheckpointError(f"{directory}: not a finished run; give the folders of finished runs")
        recipe = folder.recipe()
        runs.append(_Run(str(directory), folder, recipe, load_splits(recipe.data, recipe.seed, None, track)))
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CheckpointError(f"{twice[0]}: given twice")
    return runs


class _Pot:
    """The models of the runs, the images that they are measured on, and what is in the soup so far.

    Attributes:
        metric: that chooses.
        validation, test: images that no run was trained on, with the first run's labels.
        scores: of each run on the validation images, higher is better.
        changed: statistics of batch normalization that differ between the runs.
    """

    def __init__(
        self,
        runs: Sequence[_Run],
        data: str | DataConfig | None,
        batch_norm: str,
        allow_local_code: bool,
        track: Track,
    ) -> None:
        self.runs, self._batch_norm, self._local, self._track = runs, batch_norm, allow_local_code, track
        first = load_bundle(runs[0].folder.bundle, allow_local_code=allow_local_code)
        self.first: Bundle = replace(first, variables={})  # as much as all runs share
        self.validation, self.test = _images(runs, self.first, data, track)
        recipe = runs[0].recipe
        self.metric = recipe.evaluate.metric or ("mean_average_precision" if first.multi_label else "accuracy")
        self.placement = on_all_devices()
        self.step: EvalStep = make_eval_step(first.classifier, first.image_spec, self.placement)
        self.scores: dict[str, float] = {}
        changed: set[str] = set()
        for run in runs:
            variables = self.load(run)
            changed |= differing_statistics(first.variables, variables)
            self.scores[run.name] = self.measure(variables, run.name).score(self.metric)
        self.changed = frozenset(changed)
        self._estimate = None
        if changed and batch_norm == "reestimate":
            statistics = first.variables["batch_stats"]
            self._estimate = make_estimator(first.classifier, first.image_spec, statistics, self.changed)

    @property
    def statistics(self) -> str | None:
        """How statistics came about; None where they are the same in all runs."""
        return self._batch_norm if self.changed else None

    def load(self, run: _Run) -> Variables:
        """A run's weights.

        Raises:
            CheckpointError: they are of another network or of other classes than the first run's.
        """
        bundle = load_bundle(run.folder.bundle, allow_local_code=self._local)
        for what in ("classifier", "class_names", "image_spec", "multi_label"):
            if getattr(bundle, what) != getattr(self.first, what):
                raise CheckpointError(
                    f"{run.name}: has another {_WORDS[what]} than {self.runs[0].name}: their weights have no mean; "
                    "give runs of one network on the same classes"
                )
        if bundle.classifier.head_config is not None:
            raise CheckpointError(f"{run.name}: its head holds features of images, and these have no mean")
        return bundle.variables

    def served(self, soup: Variables) -> Variables:
        """With statistics that fit its weights."""
        return soup if self._estimate is None else self._estimate(soup, self._batches())

    def measure(self, variables: Variables, name: str, images: Split | None = None) -> Evaluation:
        split = self.validation if images is None else images
        size, spec = self.runs[0].recipe.evaluate.batch_size, self.first.image_spec
        return evaluate(self.step, variables, split, spec, size, self._track, name, True, self.placement)

    def _batches(self) -> Iterable[Any]:
        run = next(run for run in self.runs if run.recipe.train_stages)
        stage = list(run.recipe.train_stages.values())[-1]
        transform = make_training_transform(stage.augment, self.first.image_spec)
        size = min(stage.batch_size, len(run.splits.train))
        batches = training_batches(run.splits.train, transform, size, seed=run.recipe.seed)
        return islice(batches, min(_BATCHES, max(1, len(run.splits.train) // size)))


_WORDS = {
    "classifier": "network",
    "class_names": "list of classes",
    "image_spec": "preparation of images",
    "multi_label": "kind of labels",
}


def _images(runs: Sequence[_Run], first: Bundle, data: str | DataConfig | None, track: Track) -> tuple[Split, Split]:
    """Validation and test images, without those that some run was trained on; no image is both."""
    splits = runs[0].splits
    if data is not None:
        config = read_data_config(data) if isinstance(data, str) else data
        config = config.with_columns_of(runs[0].recipe.data)
        validation = read_known_images(config, None, first.class_names, first.multi_label, track).images
    elif splits.validation is not None:
        validation = splits.validation
    else:
        raise DataError(f"{runs[0].name}: has no validation images to choose on; give some with --data SOURCE")
    test = _without(splits.test, [run.splits.train for run in runs])
    validation = _without(validation, [splits.test, *(run.splits.train for run in runs)])
    if not len(validation):
        raise DataError(
            "all validation images are test images of the first run or training images of some run, as with other "
            "seeds each has its own split; give others with --data SOURCE, or runs whose data have splits of their own"
        )
    if not len(test):
        raise DataError("all test images of the first run are training images of another: the runs have different data")
    return validation, test


def _without(images: Split, others: Sequence[Split]) -> Split:
    """Those images that are in none of the others."""
    assert images.stats is not None
    known = np.concatenate([other.stats.pixel_hash for other in others if other.stats is not None])
    return images.take(np.flatnonzero(~np.isin(images.stats.pixel_hash, known)))


def _finish(folder: RunFolder, pot: _Pot, members: Sequence[str], soup: Variables, score: float) -> dict[str, Any]:
    """Saves the soup, measures it and its ingredients on the test images, and writes the summary."""
    labels, predictions = pot.test.labels, Predictions(folder.predictions, pot.test)
    results: list[dict[str, Any]] = []
    best = members[0]
    logits_of: dict[str, np.ndarray] = {}
    ingredients = sorted(pot.runs, key=lambda run: (run.name == best, pot.scores[run.name]))  # the best one last
    for name, variables in [*((run.name, pot.load(run)) for run in ingredients), (SOUP, soup)]:
        evaluation = pot.measure(variables, f"{name}: test", pot.test)
        assert evaluation.logits is not None
        result = {"name": name, "split": "test", **describe_result(evaluation, labels)}
        if name == SOUP:
            result["paired"] = compare_results(best, logits_of[best], evaluation.logits, labels)
        logits_of[name] = evaluation.logits
        predictions.add(name, evaluation.logits, [earlier["name"] for earlier in results])
        results.append(result)
        folder.log({"stage": name, **result})
    on_validation = pot.measure(soup, f"{SOUP}: validation")
    assert on_validation.logits is not None
    source = next(run for run in pot.runs if run.name == best)
    novelty, features = _fit_novelty(pot, source, soup)
    method = pot.runs[0].recipe.evaluate.calibration
    confidence = fit_confidence(on_validation.logits, pot.validation.labels, method, novelty, features)
    folder.check_ours()
    card = card_facts(
        source.recipe,
        source.splits,
        source.folder.about().get("backbone_license"),
        name=folder.directory.absolute().name,
        result=results[-1],
    )
    weights = save_bundle_like(folder.model, source.folder.bundle, soup, confidence, card)
    summary = {
        "name": folder.directory.absolute().name,
        "status": FINISHED,
        "results": results,
        "soup": {
            "members": list(members),
            "left_out": [run.name for run in pot.runs if run.name not in members],
            "images": len(pot.validation),
            "metric": pot.metric,
            "validation": {name: value_of_score(pot.metric, value) for name, value in pot.scores.items()},
            "score": value_of_score(pot.metric, score),
            "statistics": pot.statistics,
        },
        "kept": {"stage": SOUP, "metric": pot.metric, "validation": value_of_score(pot.metric, score)},
        "verdict": conclude(results, SOUP, chosen=True),
        "weights_sha256": weights,
    }
    folder.write_summary(summary)
    return summary


def _fit_novelty(pot: _Pot, run: _Run, soup: Variables) -> tuple[Novelty, np.ndarray | None]:
    """The score of novelty that a run's recipe asks for, and features of the validation images where it reads them."""
    kind, size = run.recipe.evaluate.unknown, run.recipe.evaluate.batch_size
    features = RunFeatures(pot.first.image_spec, size, Progress(quiet=True), lambda when: None, pot.placement)

    def head_inputs(images: Split) -> np.ndarray:
        return features.head_inputs(pot.first.classifier, soup, images, f"{SOUP}: {kind}")

    return fit_novelty_to(kind, run.splits.train, pot.validation, head_inputs)
