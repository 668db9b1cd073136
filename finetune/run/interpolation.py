"""The weights between those before fine-tuning and those after it (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).

They are often better than either, most of all on images of another kind than the training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import jax

from finetune.distributed.processes import arrays_from_primary
from finetune.errors import CheckpointError
from finetune.evaluation.metrics import Evaluation
from finetune.evaluation.verdict import INTERPOLATED
from finetune.models.classifier import head_paths
from finetune.recipe import TrainStage
from finetune.run.session import RunSession
from finetune.run.setup import RunSetup
from finetune.training.running_statistics import differing_statistics, make_estimator
from finetune.trees import Variables, fetch, interpolate, merge, pick

SHARES = tuple(i / 10 for i in range(11))  # of the fine-tuned weights
_BATCHES = 50  # of training images, that statistics are estimated on


def start_of_interpolation(setup: RunSetup) -> int | None:
    """The stage whose weights are those before fine-tuning, -1 for the head before the first; None where there is
    nothing to interpolate.

    That is the one before the backbone first changes. Its head has to be of the same kind as the last one.
    """
    recipe, last = setup.recipe, len(setup.recipe.stages) - 1
    if recipe.evaluate.interpolation == "off" or setup.splits.validation is None or last not in setup.plans:
        return None
    first = next((i for i in sorted(setup.plans) if setup.changes_backbone(i)), None)
    if first is None or (first == 0 and not recipe.head.classifies_from_the_start):
        return None
    before = setup.classifier if first == 0 else setup.classifiers[first - 1]
    return first - 1 if before == setup.classifiers[last] else None


def remember_start(session: RunSession, index: int) -> None:
    """To be called after each stage, and after the first head was measured; keeps the head, as the backbone is there
    anyway."""
    if index == start_of_interpolation(session.setup):
        head = pick(session.variables, head_paths(session.variables))
        session.folder.save_start(jax.tree.map(fetch, head))


def interpolate_weights(session: RunSession) -> None:
    """The last step of a run: the best weights between start and end on the validation images, measured.

    Raises:
        Interrupted: a signal came; all stages are saved.
    """
    setup = session.setup
    index = start_of_interpolation(setup)
    if index is None:
        return
    try:
        head = setup.placement.put(arrays_from_primary(session.folder.load_start))
    except CheckpointError as error:
        session.display.say(f"{error}: nothing is interpolated")
        return
    end = session.variables
    start = merge(end, pick(setup.variables, setup.changing), head)
    stage = setup.recipe.stages[-1]
    session.evaluator = None
    if isinstance(stage, TrainStage) and stage.frozen_cache.mode != "off":
        session.evaluate_from_features(setup.changing | head_paths(end))
    with session.progress.timed(INTERPOLATED):
        mixtures = _Mixtures(session, start, end)
        found = [mixtures.measure(share) for share in SHARES]
        best = _choose([(evaluation.score(session.metric), evaluation.loss) for evaluation in found])
        session.variables = mixtures.at(best)
    names = [setup.recipe.head.init, *(stage.name for stage in setup.recipe.stages)]
    session.interpolation = {
        "between": [names[index + 1], names[-1]],
        "shares": list(SHARES),
        "metric": session.metric,
        "validation": [evaluation.value(session.metric) for evaluation in found],
        "best": best,
        "statistics": setup.recipe.evaluate.interpolation if mixtures.statistics else None,
    }
    first, last = session.interpolation["between"]
    session.display.say(f"{INTERPOLATED}: {best:.1f} of {last}, {1 - best:.1f} of {first} is best on validation")
    at_an_end = best in (SHARES[0], SHARES[-1])
    session.measure(INTERPOLATED, found[SHARES.index(best)].score(session.metric), keep=not at_an_end)


def _choose(found: Sequence[tuple[float, float]]) -> float:
    """The share with the best score; of equals a mixture, which bears more under shift, then the one of least loss.

    Args:
        found: score and loss of each of the shares.
    """

    def rank(share: float) -> tuple[float, bool, bool, float]:
        score, loss = found[SHARES.index(share)]
        return score, SHARES[0] < share < SHARES[-1], share == SHARES[-1], -loss

    return max(SHARES, key=rank)


class _Mixtures:
    """The weights between two ends.

    Attributes:
        statistics: of batch normalization, that differ between the ends.
    """

    def __init__(self, session: RunSession, start: Variables, end: Variables) -> None:
        self._session, self._start, self._end = session, start, end
        self.statistics = differing_statistics(start, end)
        setup = session.setup
        self._estimate = None
        if self.statistics and setup.recipe.evaluate.interpolation == "reestimate":
            self._estimate = make_estimator(
                session.classifier, setup.spec, end["batch_stats"], self.statistics, setup.placement
            )

    def at(self, share: float) -> Variables:
        mixed = interpolate(self._start, self._end, share)
        if self._estimate is None or share in (SHARES[0], SHARES[-1]):
            return mixed
        setup = self._session.setup
        last = len(setup.recipe.stages) - 1
        most = min(_BATCHES, setup.lengths[last].steps_per_epoch or _BATCHES)
        return self._estimate(mixed, islice(setup.batches(last), most))

    def measure(self, share: float) -> Evaluation:
        session, images = self._session, self._session.setup.splits.validation
        assert images is not None
        evaluation = session.evaluate(self.at(share), images, f"{INTERPOLATED}: {share:.1f}")
        session.log({"stage": INTERPOLATED, "split": "validation", "share": share, **evaluation.to_json()})
        return evaluation
