"""Ray on this machine: two workers with a processor each."""

import json
import threading
import time

import pytest
from command_line import RECIPE

pytest.importorskip("ray", exc_type=ImportError)
import psutil
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig

import finetune
from finetune.errors import DataError, FinetuneError, MachineError
from finetune.integrations.ray import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path / "small.yaml"


def in_folder(folder, **options):
    return RunConfig(storage_path=str(folder / "ray"), **options)


def test_two_workers_are_one_run_with_the_result_of_one_process(recipe, tmp_path):
    loaded = finetune.load_recipe(recipe)
    scaling = ScalingConfig(num_workers=2)  # given to Ray alone, it leaves each worker in a world of its own
    together = train(loaded, scaling, output=tmp_path / "two", run_config=in_folder(tmp_path), quiet=True)
    alone = finetune.run(loaded, output=tmp_path / "one", quiet=True)
    assert together.directory == tmp_path / "two"
    assert len(json.loads((together.directory / "run.json").read_text())["devices"]) == 2
    for ours, theirs in zip(together.summary["results"], alone.summary["results"], strict=True):
        assert ours["accuracy"] == theirs["accuracy"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    assert together.predictor().class_names == alone.predictor().class_names


def test_a_mistake_in_the_recipe_is_what_the_caller_gets(recipe, tmp_path):
    loaded = finetune.load_recipe(recipe, [f"data.source={tmp_path / 'nowhere'}"])
    with pytest.raises(DataError, match="nowhere"):
        train(loaded, 2, output=tmp_path / "run", run_config=in_folder(tmp_path))


@pytest.mark.long
def test_workers_that_ray_leaves_apart_are_refused(recipe, tmp_path):
    environment = {"env_vars": {"JAX_PLATFORMS": "rocm"}}  # Ray makes no world of these
    with pytest.raises(MachineError, match="2 workers, but 1 JAX process: Ray did not make them one world"):
        train(recipe, 2, output=tmp_path / "run", run_config=in_folder(tmp_path, worker_runtime_env=environment))


def test_what_cannot_be_given_to_workers_is_refused_at_once(recipe):
    with pytest.raises(FinetuneError, match="0 workers; has to be at least 1"):
        train(recipe, 0)
    with pytest.raises(FinetuneError, match="images in memory cannot be given to workers"):
        train(recipe, 2, data={"train": []})


def kill_a_worker(states, killed):
    """As soon as a state is saved."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if any(state.name.isdecimal() for state in states.glob("*")):
            workers = [
                p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name() + str(p.cmdline())
            ]
            workers[-1].kill()
            killed.append(workers[-1].pid)
            return
        time.sleep(0.2)


@pytest.mark.long
def test_a_killed_worker_is_started_again_and_the_run_goes_on(recipe, tmp_path):
    loaded = finetune.load_recipe(recipe, ["stages.0.steps=40", "save.every.steps=5"])
    killed = []
    thread = threading.Thread(target=kill_a_worker, args=(tmp_path / "run" / "state", killed))
    thread.start()
    configuration = in_folder(tmp_path, failure_config=FailureConfig(max_failures=1))
    result = train(loaded, 2, output=tmp_path / "run", run_config=configuration, quiet=True)
    thread.join()
    assert killed
    assert result.summary["status"] == "finished"
    assert "resumed" in json.loads((tmp_path / "run" / "run.json").read_text())["history"][0]
    steps = [json.loads(line).get("step") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps.count(10) == 1  # none is trained twice
