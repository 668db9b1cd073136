"""The packages themselves, offline, on a run that is killed and resumed: what each has is what metrics.jsonl says."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import FINETUNE
from paths import SMALL

from finetune.folder.contents import Contents

PACKAGES = ("tensorboard", "trackio", "wandb", "mlflow")
for _package in PACKAGES:
    pytest.importorskip(_package, reason="needs the extra `trackers`")
pytestmark = pytest.mark.slow

_STEPS = 24
_KILLED = """
import os, signal, sys, time
import finetune
from finetune.folder.run_folder import RunFolder
from finetune.run.run_trackers import RunTrackers

tell = RunTrackers.log

def tell_and_die(self, record):
    tell(self, record)
    while record["split"] == "epoch" and record["step"] == 16:  # whose state is not saved yet
        told = RunFolder(sys.argv[2]).tracked().values()
        if [each["told"].get("epoch") for each in told] == [16] * 4:
            time.sleep(1)  # Trackio writes twice a second, and W&B from a process of its own
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)

RunTrackers.log = tell_and_die
finetune.run(finetune.load_recipe(sys.argv[1]), output=sys.argv[2])
"""
_TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps({run: SQLiteStorage.get_logs("digits", run) for run in SQLiteStorage.get_runs("digits")}))
"""


@pytest.fixture(scope="module")
def place(once):
    return once("tracked", make)


def make(folder):
    """A run that is killed once, and resumed."""
    partitions = "[{match: '.*', learning_rate: 1.0e-4}]"
    stage = f"{{name: train, steps: {_STEPS}, batch_size: 32, frozen_cache: off, partitions: {partitions}}}"
    trackers = (
        "[tensorboard, {name: trackio, project: digits}, {name: wandb, project: digits, mode: offline}, "
        f"{{name: mlflow, experiment: digits, tracking_uri: 'sqlite:///{folder}/mlflow.db'}}]"
    )
    recipe = (SMALL.read_text(encoding="utf-8").partition("stages:")[0]) + (
        f"stages: [{stage}]\nsave: {{every: {{epochs: 1}}}}\nevaluate: {{interpolation: off}}\ntrackers: {trackers}\n"
    )
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    killed = [sys.executable, "-c", _KILLED, folder / "recipe.yaml", folder / "run"]
    resumed = [*FINETUNE, "resume", folder / "run"]
    for command, code in ((killed, -9), (resumed, 0)):
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=folder, env=environ(folder), timeout=200
        )
        assert done.returncode == code, done.stderr
        assert "left out" not in done.stderr
        (folder / f"stdout{code}").write_text(done.stdout)


def environ(folder):
    quickly = {"WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "0.5"}  # seconds, not 15, until a kill loses nothing
    return os.environ | {"TRACKIO_DIR": f"{folder}/trackio", "WANDB_DIR": str(folder), **quickly}


@pytest.fixture(scope="module")
def logged(place):
    """(name, step) -> value, of all numbers of metrics.jsonl."""
    numbers = {}
    for line in (place / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.get("step", 0 if record["stage"] == "zero_shot" else _STEPS)
        groups = {record["split"]: record, **{key: record.get(key, {}) for key in ("learning_rate", "grad_norm")}}
        for group, values in groups.items():
            for key, value in values.items():
                if isinstance(value, float) or (isinstance(value, int) and key not in ("step", "n", "best")):
                    numbers[f"{group}/{key}", step] = value
    for name in list(numbers):
        if name[0].endswith("/epoch") or name[0].startswith("features/"):
            del numbers[name]
    assert {step for name, step in numbers if name == "train/loss"} == {8, 16, 24}
    assert {step for name, step in numbers if name == "test/accuracy"} == {0, _STEPS}
    return numbers


def check(found, logged, *, again=(), rtol=0.0):
    """Every number is there once, as it was logged. How long a step took was another when it was taken again.

    Args:
        found: (name, step, value).
        again: steps that were taken twice, of which the back end has the first.
    """
    assert sorted(key[:2] for key in found) == sorted(logged)
    for name, step, value in found:
        if not (step in again and name.endswith(("/images_per_second", "/seconds", "/seconds_left"))):
            assert math.isclose(value, logged[name, step], rel_tol=rtol), (name, step)


def test_tensorboard_has_every_number_once(place, logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place / "run" / "events"), size_guidance={"scalars": 0})
    events.Reload()
    found = [(tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    check(found, logged, rtol=float(np.finfo(np.float32).eps))
    assert len(list((place / "run" / "events").iterdir())) == 2


def test_trackio_has_every_number_once(place, logged):
    command = [sys.executable, "-c", _TRACKIO]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ(place))
    [(run, rows)] = json.loads(done.stdout).items()
    assert run.startswith("recipe-")
    found = [(key, row["step"], row[key]) for row in rows for key in row.keys() - {"step", "timestamp"}]
    check(found, logged, again=[16])


def test_wandb_has_every_number_once_in_the_files_of_one_run(place, logged):
    files = sorted(place.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    rows = [row for file in files for row in wandb_rows(file)]
    found = [(key, row["step"], row[key]) for row in rows for key in row if key != "step" and key[0] != "_"]
    check(found, logged, again=[16])


def wandb_rows(file):
    """What was logged: records of wandb's own protobuf, in blocks as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = Path(file).read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # no room for the header of a part
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a record by itself, or its last part
            record = Record.FromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }


def test_mlflow_has_every_number_once(place, logged, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "recipe"
    assert run.data.params["stages.0.batch_size"] == "32"
    names = {name.replace("*", "_"): name for name, _ in logged}
    histories = {names[key]: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    found = [(name, metric.step, metric.value) for name, history in histories.items() for metric in history]
    check(found, logged, again=[16])


def test_the_folder_has_nothing_that_an_overwrite_would_leave(place):
    assert not Contents(place / "run").foreign()
    assert not Contents(place / "run").links()


def test_standard_output_is_the_runs_own(place):
    first = next(line for line in (place / "stdout0").read_text().splitlines() if line.strip())
    assert first.split()[0] == "result"
