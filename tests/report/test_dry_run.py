import json

import pytest
from command_line import clean_failure, finetune, read_table
from paths import SMALL

import finetune as package
from finetune.errors import MeshError
from finetune.report import dry_run as module


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What a dry run of the small recipe says, and what it leaves in the folder where it ran."""
    folder = tmp_path_factory.mktemp("dry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = finetune("run", SMALL, "--dry-run", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), list(folder.rglob("*"))


@pytest.mark.slow
def test_nothing_is_written(tried):
    result, left = tried
    assert result["output"] == {"directory": "checkpoints/small", "problem": None}
    assert left == []


@pytest.mark.slow
def test_each_stage_takes_real_steps(tried):
    probe, finetune = tried[0]["stages"]
    assert (probe["name"], probe["step"], probe["partitions"]) == ("probe", None, None)
    assert (finetune["name"], finetune["steps"], finetune["step"]["batches"]) == ("finetune", 24, 24)
    assert {partition["name"] for partition in finetune["partitions"]} >= {"head/.*", "frozen"}
    for part in (probe["extraction"], finetune["extraction"], finetune["step"]):
        assert part["seconds_per_batch"] > 0
        assert part["memory_bytes"] > 1e6
    assert 0 < finetune["step"]["loss"] < 5


@pytest.mark.slow
def test_the_estimate_is_the_measured_time_of_a_batch_times_all_batches(tried):
    result = tried[0]
    probe, finetune = result["stages"]
    seconds, evaluation = result["seconds"], result["evaluation"]
    images = 259 + 65 + 180
    assert probe["extraction"]["batches"] == -(-images // 32)
    assert seconds["train"] == finetune["step"]["seconds_per_batch"] * 24
    extractions = (probe["extraction"], finetune["extraction"])
    assert seconds["features"] == pytest.approx(
        sum(each["seconds_per_batch"] * each["batches"] for each in extractions)
    )
    assert evaluation["images"] == (65 + 180) + (11 * 65 + 65 + 180)  # zero-shot, and the mixtures at the end
    assert seconds["evaluate"] == pytest.approx(evaluation["images"] / evaluation["images_per_second"])
    assert seconds["total"] == pytest.approx(sum(value for name, value in seconds.items() if name != "total"))


@pytest.mark.slow
def test_disk_is_that_of_the_run(tried, small_run):
    disk = tried[0]["disk_bytes"]
    for name, folder in (("model", "model/weights"), ("states", "state")):
        size = sum(file.stat().st_size for file in (small_run.directory / folder).rglob("*") if file.is_file())
        assert 0.5 * disk[name] < size < 1.1 * disk[name], name  # what is written is compressed
    assert disk["free"] > 0


@pytest.mark.slow
def test_a_taken_folder_is_told_and_the_table_has_a_line_for_each_program(small_run, tmp_path):
    done = finetune(
        *("run", SMALL, "--dry-run", "stages.1.frozen_cache=off", "~stages.0", "-o", small_run.directory), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    [row] = read_table(done.stdout)
    assert row["stage"] == "finetune"
    assert (row["batches"], row["of images"]) == ("24", "32")
    assert "already holds a run" in done.stdout.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--resume", "--extend", "--overwrite"])
def test_it_starts_nothing_that_could_go_on(option):
    clean_failure(finetune("run", SMALL, "--dry-run", option), f"--dry-run starts nothing: leave {option} out")


@pytest.mark.parametrize("option", ["--coordinator=localhost:1", "--num-processes=2", "--process-id=0"])
def test_the_command_joins_no_others(option):
    name = option.partition("=")[0]
    clean_failure(finetune("run", SMALL, "--dry-run", option), f"--dry-run is for one process: leave {name} out")


def test_json_is_of_a_dry_run_alone():
    clean_failure(finetune("run", SMALL, "--json"), "--json goes with --dry-run")


def test_it_is_for_one_process(monkeypatch):
    monkeypatch.setattr(module, "process_count", lambda: 2)
    with pytest.raises(MeshError, match="one process"):
        package.dry_run(package.load_recipe(SMALL))
