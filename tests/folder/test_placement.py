import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT, TESTS
from run_folders import make_run, start, tree

from finetune.errors import CheckpointError
from finetune.folder import placement
from finetune.folder.run_folder import RunFolder


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["start", "start_in_an_empty_folder", "overwrite", "overwrite_twice", "model"])
def test_a_kill_at_any_file_operation_leaves_a_whole_run_or_none(tmp_path, scene):
    script = TESTS / "support" / "kill_everywhere.py"
    command = [sys.executable, str(script), scene, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_an_overwrite_that_fails_leaves_the_earlier_run_as_it_was(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    before = tree(folder.directory)

    def no_room(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(placement, "written_atomically", no_room)
    with pytest.raises(OSError, match="No space left"):
        start(folder, 2, overwrite=True)
    assert tree(folder.directory) == before
    assert list(tmp_path.iterdir()) == [folder.directory]


def test_a_start_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(placement.Path, "rename", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(RunFolder(tmp_path / "run"), 1)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_overwrite_is_undone_and_said(tmp_path):
    folder = make_run(tmp_path / "run")
    before = tree(folder.directory)
    folder.directory.rename(tmp_path / ".run.old")
    lines = []
    with folder.reserve("test", resume=True, say=lines.append):
        assert tree(folder.directory) == before
    assert lines == [f"{folder.directory}: --overwrite was interrupted: the earlier run is back"]


def test_the_current_folder_is_started_in_and_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_run(Path())
    assert (tmp_path / "run.json").is_file()
    with pytest.raises(CheckpointError, match="the current folder, or around it: it cannot be moved aside"):
        folder.check_free(overwrite=True)
    with folder.reserve("test", resume=True):
        assert (tmp_path.parent / f".{tmp_path.name}.lock").is_file()


def test_what_stands_in_the_way_of_an_overwrite_is_named(tmp_path):
    folder = make_run(tmp_path / "run")
    before = tree(folder.directory)
    (tmp_path / ".run.old").mkdir()
    (tmp_path / ".run.old" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"\.run\.old: is in the way; move it"):
        start(folder, 2, overwrite=True)
    assert tree(folder.directory) == before


def test_a_start_that_was_killed_half_way_is_begun_anew(tmp_path):
    made = make_run(tmp_path / "made").directory
    staging = tmp_path / "run" / ".starting"
    staging.mkdir(parents=True)
    (made / "run.json").rename(staging / "run.json")
    (made / "recipe.yaml").rename(tmp_path / "run" / "recipe.yaml")
    folder = RunFolder(tmp_path / "run")
    assert not folder.holds_run()
    with folder.reserve("test"):
        start(folder, 2)
    assert folder.about()["seed"] == folder.recipe().seed == 2
    assert sorted(os.listdir(folder.directory)) == ["recipe.yaml", "run.json", "skipped_images.txt"]


def test_a_recipe_of_ones_own_is_not_taken_for_that_of_a_start(tmp_path):
    staging = tmp_path / "run" / ".starting"
    staging.mkdir(parents=True)
    for file in (staging / "recipe.yaml", staging / "run.json", tmp_path / "run" / "recipe.yaml"):
        file.write_text("mine")
    told = "is not empty, and holds no run"
    with pytest.raises(CheckpointError, match=told), RunFolder(tmp_path / "run").reserve("test"):
        pytest.fail("went on")
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "mine"
