import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from paths import SMALL

from finetune.run import auto_mesh
from finetune.training.memory import StepCost, describe_bytes

GB = 10**9
TRAINER = SimpleNamespace(stage=SimpleNamespace(batch_size=64))


@pytest.fixture
def choose(monkeypatch):
    """``choose(devices, memory, of)``: mesh, line and what was tried where a step takes ``of(fsdp)`` bytes."""

    def chosen(devices, memory, of):
        tried = []

        def cost(fsdp, *_):
            tried.append(fsdp)
            return StepCost(0.0, {"peak": of(fsdp)})

        monkeypatch.setattr(auto_mesh.jax, "device_count", lambda: devices)
        monkeypatch.setattr(auto_mesh, "make_mesh", lambda config: config)
        monkeypatch.setattr(auto_mesh, "Placement", lambda config: config.fsdp)
        monkeypatch.setattr(auto_mesh, "device_memory", lambda: memory)
        monkeypatch.setattr(auto_mesh, "step_cost", lambda trainer, spec, size: cost(trainer.fsdp))
        trainers = lambda fsdp: [SimpleNamespace(fsdp=fsdp, **vars(TRAINER))]  # noqa: E731
        mesh, line = auto_mesh.choose_mesh(trainers, None)
        return mesh, line, tried

    return chosen


def test_parameters_are_whole_where_they_fit_and_nothing_else_is_tried(choose):
    mesh, line, tried = choose(8, 10 * GB, lambda fsdp: 8 * GB)
    assert (mesh.data, mesh.fsdp, mesh.tensor, tried) == (-1, 1, 1, [1])
    assert line == "mesh: auto: parameters are whole on each device; a step takes 8.00 GB of the 10.00 GB of each"


def test_the_fewest_parts_that_fit_are_taken_and_the_line_says_what_fewer_would_take(choose):
    mesh, line, tried = choose(8, 10 * GB, lambda fsdp: 4 * GB + 20 * GB // fsdp)
    assert (mesh.fsdp, mesh.tensor, tried) == (4, 1, [1, 2, 4])
    assert "divided among 4 devices; a step takes 9.00 GB of the 10.00 GB of each; 14.00 GB with fsdp 2" in line


def test_a_tenth_of_the_memory_is_left_free(choose):
    assert choose(2, 10 * GB, lambda fsdp: 91 * GB // 10 // fsdp)[0].fsdp == 2


@pytest.mark.parametrize(("devices", "parts"), [(6, [1, 2, 6]), (8, [1, 2, 4, 8]), (3, [1, 3]), (12, [1, 2, 4, 12])])
def test_the_parts_divide_the_devices_and_where_none_fits_all_share_and_it_is_told(choose, devices, parts):
    mesh, line, tried = choose(devices, GB, lambda fsdp: 5 * GB)
    assert (mesh.fsdp, tried) == (devices, parts)
    assert "may not be enough" in line
    assert "lower batch_size" in line


def test_one_device_needs_no_choice(choose):
    mesh, line, tried = choose(1, GB, lambda fsdp: 5 * GB)
    assert (mesh.fsdp, tried, line) == (1, [], "mesh: auto: there is one device")


def test_bytes_are_told_in_units_of_their_size():
    assert [describe_bytes(size) for size in (36.48e6, 1.25e9, 24e9)] == ["36.5 MB", "1.25 GB", "24.00 GB"]


PROGRAM = """
import json, sys
import finetune
from finetune.report import plan as report
from finetune.run import auto_mesh

report.largest_batch = lambda *_: None  # which compiles
auto_mesh.device_memory = lambda: 44_000_000  # bytes; whole parameters take more
recipe = finetune.load_recipe(sys.argv[1], ["mesh=auto", "stages.1.epochs=1", "evaluate.interpolation=off"])
plan = report.plan_recipe(recipe)
finetune.run(recipe, output="run")
saved = finetune.load_recipe("run/recipe.yaml").mesh
auto_mesh.choose_mesh = None  # is not asked again
resumed = finetune.run(recipe, output="run", resume=True).summary["status"]
print(json.dumps({"planned": plan["mesh"], "saved": saved.model_dump(), "lines": plan["lines"], "resumed": resumed}))
"""


@pytest.mark.slow
def test_the_plan_and_the_run_choose_alike_and_the_run_keeps_what_it_chose(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    text = SMALL.read_text(encoding="utf-8").replace("optimizer: sgd, learning_rate", "learning_rate")
    recipe.write_text(text.replace('match: ".*", frozen: true', 'match: ".*", learning_rate: 1.0e-4'), encoding="utf-8")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, recipe], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["planned"] == {"data": 1, "fsdp": 2, "tensor": 1}
    assert told["saved"]["fsdp"] == 2
    assert told["resumed"] == "finished"
    assert told["lines"][0].startswith("mesh: auto: parameters are divided among 2 devices")
    assert "may not be enough" not in told["lines"][0]
    assert told["lines"][0] in done.stderr
