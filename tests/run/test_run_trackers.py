"""What trackers are told of a run, how they go on with it, and that none of them can stop it."""

import threading
import time

import pytest
from paths import SMALL
from run_folders import start

import finetune
from finetune.errors import Diverged, Interrupted
from finetune.folder.run_folder import RunFolder
from finetune.run import run_trackers
from finetune.run.run_trackers import RunTrackers, StepsOfRun, scalars_of

STEPS = StepsOfRun(finetune.load_recipe(SMALL), [1, 24])


def train(step, loss=0.5):
    return {"stage": "finetune", "step": step, "epoch": step / 8, "split": "train", "loss": loss}


class Fake:
    """A back end that keeps what it gets, for later runs of the same id as well."""

    def __init__(self, name="fake"):
        self.name, self.got, self.runs, self.ends = name, [], [], []

    def start(self, run):
        self.runs.append(run)
        return "7"

    def log(self, scalars, step):
        self.got += [(name, step) for name in scalars]

    def finish(self, status):
        self.ends.append(status)


class Rewinding(Fake):
    rewinds = True

    def start(self, run):
        if run.id is not None:
            self.got = [(name, step) for name, step in self.got if step < run.step]
        return super().start(run)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    start(folder, 1)
    return folder


def follow(folder, trackers, records, step=0, *, said=None):
    """A run that logs records, and ends."""
    run = RunTrackers(trackers, folder, STEPS, (said if said is not None else []).append)
    run.begin(finetune.load_recipe(SMALL), step)
    for record in records:
        folder.log(record)
        run.log(record)
    with run:
        pass


def wait_until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_record_has_a_number_for_each_metric_and_partition():
    record = {**train(8), "best": True, "n": 3, "grad_norm": {"head": 2.0, "rest": float("nan")}, "metric": "accuracy"}
    assert scalars_of(record) == {"train/loss": 0.5, "grad_norm/head": 2.0}
    assert scalars_of({"stage": "interpolated", "split": "validation", "share": 0.5, "loss": 1.0}) == {}
    assert scalars_of({"stage": "finetune", "step": 0, "carried_optimizer_state": ["head"]}) == {}


def test_steps_are_those_of_all_stages_one_after_the_other():
    records = [
        {"stage": "zero_shot", "split": "test"},
        {"stage": "probe", "split": "train"},
        train(8),
        {"stage": "finetune", "split": "test"},
        {"stage": "interpolated", "split": "test"},
    ]
    assert [STEPS.of(record) for record in records] == [0, 1, 9, 25, 26]


def test_a_tracker_is_told_the_recipe_all_numbers_and_the_end(folder):
    fake = Fake()
    follow(folder, [fake], [train(8), {**train(8), "split": "validation"}, train(16)])
    [run] = fake.runs
    assert (run.name, run.folder, run.id, run.step) == ("small", folder.directory, None, 0)
    assert run.config["stages.1.partitions.0.learning_rate"] == 1e-3
    assert fake.got == [("train/loss", 9), ("validation/loss", 9), ("train/loss", 17)]
    assert fake.ends == ["finished"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Diverged("the loss is not finite"), "diverged"),
        (Interrupted("SIGTERM", 15), "interrupted"),
        (MemoryError(), "failed"),
    ],
)
def test_a_tracker_is_told_how_the_run_ended(folder, error, status):
    fake = Fake()
    run = RunTrackers([fake], folder, STEPS, pytest.fail)
    run.begin(finetune.load_recipe(SMALL), 0)
    with pytest.raises(type(error)), run:
        raise error
    assert fake.ends == [status]


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_line_and_the_others_go_on(folder, where, monkeypatch):
    def fail(*_):
        raise ConnectionError("no route\nto host")

    broken, fake, said = Fake("broken"), Fake(), []
    monkeypatch.setattr(broken, where, fail)
    follow(folder, [broken, fake], [train(8), train(16)], said=said)
    assert fake.got == [("train/loss", 9), ("train/loss", 17)]
    [line] = said
    assert line.startswith("broken: ConnectionError: no route: it is left out")


def test_a_run_does_not_wait_for_ever_for_a_tracker_that_hangs(folder, monkeypatch):
    fake, said, going_on = Fake(), [], threading.Event()
    monkeypatch.setattr(fake, "log", lambda *_: going_on.wait(10))
    monkeypatch.setattr(run_trackers, "_PATIENCE", {"finished": 0.02})
    follow(folder, [fake], [train(8)], said=said)
    assert said == ["fake: not done in time: the last numbers may be missing there"]
    before = folder.tracked()
    going_on.set()
    wait_until(lambda: fake.ends)
    assert folder.tracked() == before  # what is late no longer writes to the folder


@pytest.mark.parametrize("kind", [Fake, Rewinding])
def test_a_run_that_goes_on_tells_each_step_once(folder, kind):
    fake = kind()
    follow(folder, [fake], [train(4), train(8), train(12)])
    folder.metrics.cut(1)  # back to the state of step 4
    follow(folder, [fake], [train(8)], step=5)
    folder.metrics.cut(1)
    follow(folder, [fake], [train(8), train(12), train(16)], step=5)
    assert fake.got == [("train/loss", step) for step in (5, 9, 13, 17)]
    assert [(run.id, run.step) for run in fake.runs] == [(None, 0), ("7", 5), ("7", 5)]


def test_a_tracker_that_joins_later_is_told_everything(folder):
    first, second = Fake("first"), Fake("second")
    follow(folder, [first], [train(4), train(8)])
    follow(folder, [first, second], [train(12)], step=9)
    assert first.got == second.got == [("train/loss", step) for step in (5, 9, 13)]
    assert second.runs[0].id is None


def test_what_a_failing_tracker_missed_it_is_told_when_the_run_goes_on(folder, monkeypatch):
    fake = Fake()
    with monkeypatch.context() as patch:
        patch.setattr(fake, "log", lambda *_: 1 / 0)
        follow(folder, [fake], [train(4), train(8)])
    follow(folder, [fake], [train(12)], step=9)
    assert fake.got == [("train/loss", step) for step in (5, 9, 13)]


def test_where_what_was_remembered_is_damaged_a_tracker_begins_anew(folder):
    fake = Fake()
    follow(folder, [fake], [train(4)])
    file = folder.directory / "trackers.json"
    file.write_text(file.read_text().replace('"7"', '"8"'))
    follow(folder, [fake], [train(8)], step=5)
    assert [run.id for run in fake.runs] == [None, None]


def test_two_trackers_of_one_kind_are_told_apart(folder):
    follow(folder, [Fake(), Fake(), Fake()], [train(4)])
    assert folder.tracked().keys() == {"fake", "fake-2", "fake-3"}


def test_without_trackers_nothing_is_written(folder):
    follow(folder, [], [train(4)])
    assert not (folder.directory / "trackers.json").exists()
