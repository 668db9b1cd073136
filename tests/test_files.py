import json
import os
from pathlib import Path

import pytest

from finetune.errors import CheckpointError
from finetune.files import (
    cache_folder,
    folder_written_atomically,
    replaced,
    require_space,
    restore_replaced,
    write_json,
    written_atomically,
)


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path):
    require_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(CheckpointError, match=r"run: no room: 1,000,000,000,000 MB are needed and [\d,]+ MB are free"):
        require_space(tmp_path / "run", 10**18)
    assert not Path(tmp_path / "run").exists()


def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path):
    file = tmp_path / "summary.json"
    write_json(file, {"a": 1})
    with pytest.raises(UnicodeEncodeError), written_atomically(file) as beside:
        beside.write_text("half \ud800", encoding="utf-8")
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path):
    folder = tmp_path / "model"
    for text in ("first", "second"):
        with folder_written_atomically(folder) as fresh:
            (fresh / "weights").write_text(text)
    with pytest.raises(UnicodeEncodeError), folder_written_atomically(folder) as fresh:
        (fresh / "weights").write_text("half \ud800", encoding="utf-8")
    assert (folder / "weights").read_text() == "second"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "finetune"


def test_a_folder_that_was_lost_between_two_renames_is_found_and_replaced(tmp_path):
    folder = tmp_path / "model"
    (tmp_path / "model.old").mkdir()
    (tmp_path / "model.old" / "weights").write_text("earlier")
    with pytest.raises(FileNotFoundError), folder_written_atomically(folder) as fresh:
        (fresh / "nothing").unlink()
    assert (replaced(folder) / "weights").read_text() == "earlier"
    restore_replaced(folder)
    assert (folder / "weights").read_text() == "earlier"
    with folder_written_atomically(folder) as fresh:
        (fresh / "weights").write_text("new")
    assert (folder / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_processes_that_write_one_folder_do_not_remove_what_the_other_writes(tmp_path):
    folder = tmp_path / "model"
    others = tmp_path / f"model.{os.getppid()}.new"
    fresh_one, old_one = tmp_path / f"model.{NOBODY}.new", tmp_path / f"model.{NOBODY + 1}.new"
    for path in (others, fresh_one, old_one):
        path.mkdir()
        (path / "weights").write_text("half")
    for path in (others, old_one):
        for each in (path / "weights", path):
            os.utime(each, (0, 0))
    with folder_written_atomically(folder) as first:
        (first / "weights").write_text("new")
    assert sorted(tmp_path.iterdir()) == sorted([folder, others, fresh_one])  # another host may write one that is young


NOBODY = 2**22 + 1  # above the numbers of processes


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "summary.json").symlink_to("mine")
    (tmp_path / f"summary.json.{os.getpid()}.new").symlink_to("mine")
    write_json(tmp_path / "summary.json", {"a": 1})
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "summary.json").is_symlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "model").symlink_to("folder")
    with folder_written_atomically(tmp_path / "model") as fresh:
        (fresh / "weights").write_text("new")
    assert (tmp_path / "folder" / "mine").read_text() == "mine"
    assert not (tmp_path / "model").is_symlink()


def test_a_file_is_on_disk_before_its_name_is_taken(tmp_path, monkeypatch):
    order = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("rename"), rename(*names)))
    write_json(tmp_path / "summary.json", {"a": 1})
    assert order == ["sync", "rename", "sync"]
