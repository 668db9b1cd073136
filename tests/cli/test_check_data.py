import json

import numpy as np
from command_line import clean_failure, finetune
from paths import SMALL
from PIL import Image


def test_check_data_shows_counts_sizes_and_modes():
    report = json.loads(finetune("check-data", SMALL, "--json").stdout)
    assert report["splits"]["test"]["images"] == 180
    assert report["leakage"]["exact"] == 0
    table = finetune("check-data", SMALL, columns=200).stdout
    assert "8x8 - 8x8" in table
    assert "L 180" in table


def test_check_data_lists_broken_images_and_skips_them_only_where_the_recipe_says_so(tmp_path):
    for name in ("ant", "bee"):
        for i in range(6):
            path = tmp_path / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(path)
    for name in ("data/ant/1.png", "data/bee/4.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    options = ("data.source=data", "data.validation=0", "data.fraction=1", "data.test=0.8")
    clean_failure(
        finetune("check-data", SMALL, *options, cwd=tmp_path), "ant/1.png", "bee/4.png", "on_broken_image=skip"
    )
    skipping = finetune("check-data", SMALL, *options, "data.on_broken_image=skip", cwd=tmp_path)
    assert skipping.returncode == 0
    assert len([line for line in skipping.stdout.splitlines() if line.startswith("skipped")]) == 2


def test_names_of_files_cannot_make_the_terminal_obey_or_write_lines_of_their_own(tmp_path):
    for value, name in enumerate(("ant", "bee")):
        for i in range(6):
            path = tmp_path / "data" / name / f"{i}\x1b[31m\nleft out  x.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 100 * value, np.uint8)).save(path)
    (tmp_path / "data" / "ant" / "a\x1b[2J\nskipped   b").write_text("no image")
    (tmp_path / "data" / "bee" / "a\x1b]0;title\x07\nleft out  b.png").write_text("no image")
    options = ("data.source=data", "data.validation=0", "data.fraction=1", "data.test=0.8", "data.on_broken_image=skip")
    result = finetune("check-data", SMALL, *options, cwd=tmp_path)
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    for start, count in {"left out": 1, "skipped": 1, "leakage": 1}.items():
        assert len([line for line in result.stdout.splitlines() if line.startswith(start)]) == count
    assert r"ant/a\x1b[2J\nskipped   b: not an image" in result.stdout
    assert r"\x1b]0;title\x07\nleft out  b.png: not an image" in result.stdout
