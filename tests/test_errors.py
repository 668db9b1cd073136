from pathlib import Path

import pytest

from finetune.errors import CheckpointError, nearest, require_space


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path):
    require_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(CheckpointError, match=r"run: no room: 1,000,000,000,000 MB are needed and [\d,]+ MB are free"):
        require_space(tmp_path / "run", 10**18)
    assert not Path(tmp_path / "run").exists()


def test_the_nearest_word_is_offered_only_where_it_is_near():
    assert nearest("learing_rate", ["match", "learning_rate"]) == " (did you mean 'learning_rate'?)"
    assert nearest("zzz", ["match", "learning_rate"]) == ""
