import json
from pathlib import Path

import pytest

from finetune.errors import CheckpointError
from finetune.files import cache_folder, folder_written_atomically, require_space, write_json, written_atomically


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
