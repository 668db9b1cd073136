import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from run_folders import FILES, make_run, start, tree

from finetune.checkpoint import find_bundle
from finetune.errors import CheckpointError, RecipeError
from finetune.files import hash_json
from finetune.folder.run_folder import FINISHED, RunFolder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run").directory


@pytest.fixture
def folder(made, tmp_path):
    return RunFolder(shutil.copytree(made, tmp_path / "run"))


def rewrite(folder, **changes):
    file = folder.directory / "run.json"
    about = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


def test_a_run_is_known_by_what_its_run_json_says_and_not_by_its_name(folder, tmp_path):
    assert folder.holds_run()
    rewrite(folder, finetune_run=None, sha256=None)  # of an earlier version
    assert folder.holds_run()
    assert folder.about() == {"seed": 1, "backbone_sha256": "b"}
    for text in ('{"of": "another program"}', "[1]", "3", "null", '"finetune_run"'):
        (folder.directory / "run.json").write_text(text)
        assert not folder.holds_run()
        with pytest.raises(CheckpointError, match="--overwrite replaces runs alone, and this is none"):
            folder.check_free(overwrite=True)


def test_a_damaged_run_json_is_said_to_be_so(folder):
    file = folder.directory / "run.json"
    rewrite(folder, seed=2)
    with pytest.raises(CheckpointError, match=r"run\.json: damaged: it is not what the run wrote"):
        folder.about()
    rewrite(folder, finetune_run=2)
    with pytest.raises(CheckpointError, match="written by another version"):
        folder.about()
    file.write_text(file.read_text()[:40])
    with pytest.raises(CheckpointError, match=r"run\.json: damaged: .*; start anew with --overwrite"):
        folder.about()
    folder.check_free(overwrite=True)
    for rest in ("", "{", "\0" * 40, "[" * 10_000):
        file.write_text(rest)
        with pytest.raises(
            CheckpointError, match=r"run\.json: not JSON: .*; if it was a run's, restore it from a copy"
        ):
            folder.check_free(overwrite=True)


def test_an_earlier_run_is_replaced_by_the_new_one_alone(folder, tmp_path):
    folder.directory.chmod(0o700)
    with folder.reserve("test", overwrite=True):
        start(folder, 2, overwrite=True)
    assert sorted(os.listdir(folder.directory)) == ["recipe.yaml", "run.json", "skipped_images.txt"]
    assert folder.about()["seed"] == 2
    assert stat.S_IMODE(folder.directory.stat().st_mode) == 0o700
    assert os.listdir(tmp_path) == ["run"]


def test_files_of_others_stop_an_overwrite_before_anything_is_touched(folder, tmp_path):
    (folder.directory / "state" / "7" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    told = r"has files that no run wrote: state/7/notes\.txt; move them"
    with pytest.raises(CheckpointError, match=told), folder.reserve("test", overwrite=True):
        pytest.fail("went on")
    assert tree(tmp_path) == before


def test_links_where_a_run_writes_are_refused_and_what_they_name_stays(folder, tmp_path):
    for name in ("model", "state", "figures", "metrics.jsonl", "run.json", *FILES[5:8], "model/mine"):
        path = folder.directory / name
        path.rename(tmp_path / "elsewhere") if path.exists() else (tmp_path / "elsewhere").mkdir()
        path.symlink_to(tmp_path / "elsewhere")
        before = tree(tmp_path)
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(CheckpointError, match=f"has links where a run writes: {name};"):
                folder.check_free(**options)
        assert tree(tmp_path) == before
        path.unlink()
        (tmp_path / "elsewhere").rename(path)


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_a_link_is_refused(folder, tmp_path, options, there):
    link = tmp_path / "link"
    link.symlink_to(folder.directory if there else tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="link: a link, and runs do not write through links"):
        RunFolder(link).check_free(**options)


def test_links_around_the_folder_are_followed_and_those_beside_a_runs_files_left_alone(folder, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    (folder.directory / "data").symlink_to(tmp_path)
    linked = RunFolder(tmp_path / "link" / "run")
    linked.check_free(resume=True)
    with pytest.raises(CheckpointError, match="no run wrote: data;"):
        linked.check_free(overwrite=True)
    (folder.directory / "data").unlink()
    start(linked, 2, overwrite=True)
    assert folder.about()["seed"] == 2


def test_a_copy_by_hard_links_is_not_written_through(folder, tmp_path):
    shutil.copytree(folder.directory, tmp_path / "copy", copy_function=os.link)
    before = tree(tmp_path / "copy")
    folder.log({"loss": 1.0})
    folder.write_summary({"status": "other"})
    start(RunFolder(tmp_path / "run"), 2, overwrite=True)
    assert tree(tmp_path / "copy") == before


def test_the_log_is_not_written_through_a_link(folder, tmp_path):
    (folder.directory / "metrics.jsonl").rename(tmp_path / "elsewhere")
    (folder.directory / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: a link"):
        folder.log({"loss": 1.0})
    assert (tmp_path / "elsewhere").read_bytes() == before


@pytest.mark.parametrize("others", [False, True])
def test_a_folder_that_vanishes_during_a_run_is_an_error_and_not_made_again(folder, tmp_path, others):
    def vanish():
        folder.directory.rename(tmp_path / "elsewhere")
        if others:
            folder.directory.mkdir()

    with pytest.raises(CheckpointError, match="is gone"), folder.reserve("test", resume=True):
        vanish()
    for write in (folder.log, folder.write_summary, folder.figure, folder.save_start):
        with pytest.raises(CheckpointError, match="is gone: it was removed, moved or unmounted"):
            write({})
    assert sorted(os.listdir(tmp_path)) == (["elsewhere", "run"] if others else ["elsewhere"])
    assert not others or not os.listdir(folder.directory)


def test_what_a_missing_folder_leads_to_is_told_as_the_folder_that_is_missing(folder):
    with pytest.raises(CheckpointError, match="is gone"), folder.reserve("test", resume=True):
        folder.directory.rename(folder.directory.with_name("elsewhere")).joinpath("nothing").unlink()


def test_left_overs_of_a_killed_process_are_removed_on_resuming(folder, tmp_path):
    before = tree(folder.directory)
    (folder.directory / "figures" / "curves.png.123.new").write_text("half")
    (folder.directory / "metrics.jsonl.123.new").write_text("half")
    shutil.copytree(folder.model, folder.directory / "model.123.new")
    shutil.copytree(folder.model, folder.directory / "model.old")
    (folder.directory / "notes.123.new").write_text("mine")
    with folder.reserve("test", resume=True):
        pass
    assert tree(folder.directory) == before | {"notes.123.new": b"mine"}


def test_the_model_is_read_where_a_kill_left_it_and_put_back_on_resuming(folder):
    model = tree(folder.model)
    folder.model.rename(folder.directory / "model.old")
    assert find_bundle(folder.directory) == find_bundle(folder.model) == folder.bundle == folder.directory / "model.old"
    with folder.reserve("test", resume=True):
        assert tree(folder.model) == model
    assert not (folder.directory / "model.old").exists()


def test_another_folder_named_old_is_not_taken_for_a_model(folder, tmp_path):
    bundle = Path(shutil.copytree(folder.model, tmp_path / "mine.old"))
    assert find_bundle(bundle) == bundle
    assert find_bundle(tmp_path / "mine") is None
    assert find_bundle(tmp_path / "model") is None


def test_run_json_is_covered_by_its_digest(folder):
    about = json.loads((folder.directory / "run.json").read_text())
    assert about.pop("sha256") == hash_json(about)
    assert next(iter(about)) == "finetune_run"


def flip(file, offset):
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("recipe.yaml", RunFolder.recipe),
        ("run.json", RunFolder.about),
        ("summary.json", RunFolder.summary),
        ("metrics.jsonl", RunFolder.records),
        ("start.safetensors", RunFolder.load_start),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_flipped_bit_in_a_file_of_the_run_is_seen_when_it_is_read(folder, name, read, share):
    folder.log({"loss": 0.25})
    folder.write_summary({"status": FINISHED, "results": [{"accuracy": 0.9375, "loss": None}]})
    folder.save_start({"head": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}})
    read(folder)
    file = folder.directory / name
    flip(file, int(share * file.stat().st_size))
    with pytest.raises((CheckpointError, RecipeError), match=name):
        read(folder)


def test_a_damaged_log_begins_anew(folder):
    folder.log({"loss": 0.25})
    folder.log({"loss": 0.5})
    lines, digest = folder.metrics.extent()
    folder.log({"loss": 0.75})  # after the state that is gone on from
    whole = folder.metrics.file.read_bytes()
    assert folder.metrics.cut(lines, digest)
    assert folder.metrics.file.read_text().count("\n") == lines
    folder.metrics.file.write_bytes(whole)
    flip(folder.metrics.file, whole.index(b"0.5") - 3)  # a quotation mark
    assert not folder.metrics.cut(lines, digest)
    assert folder.records() == []


def test_a_cut_recipe_is_never_read_as_one_with_defaults(folder):
    file = folder.directory / "recipe.yaml"
    text = file.read_bytes()
    for size in range(0, len(text), 97):
        file.write_bytes(text[:size])
        with pytest.raises((CheckpointError, RecipeError), match=r"recipe\.yaml"):
            folder.recipe()
