import re

import numpy as np
from PIL import Image

from finetune.page.heat_map import ConfusionMatrix, heat_map, save_heat_map


def matrix(counts, names):
    return ConfusionMatrix(np.asarray(counts), np.sum(counts, 1), names)


def test_each_cell_says_what_it_counts_and_names_are_escaped():
    drawn = heat_map(matrix([[8, 2], [0, 5]], ["<b>cat</b>", "狗 & co"]), "two classes")
    assert "<b>" not in drawn
    titles = re.findall(r"<title>(.*?)</title>", drawn)
    assert titles == [
        "&lt;b&gt;cat&lt;/b&gt;: 8 of 10 recognized",
        "&lt;b&gt;cat&lt;/b&gt;: 2 of 10 taken for 狗 &amp; co",
        "狗 &amp; co: 5 of 5 recognized",
    ]
    assert 'aria-label="two classes"' in drawn


def test_a_hundred_classes_have_their_names_and_cells_that_can_be_pointed_at():
    names = [f"class number {i}" for i in range(100)]
    counts = np.eye(100, dtype=int) * 90 + np.roll(np.eye(100, dtype=int), 1, axis=1) * 10
    drawn = heat_map(matrix(counts, names), "many")
    assert drawn.count("<title>") == 200
    assert all(f">{name}</text>" in drawn for name in names)
    sizes = {float(width) for width in re.findall(r'<rect class="wrong"[^>]*width="([\d.]+)"', drawn)}
    assert min(sizes) >= 8  # pixels
    assert len(drawn) < 100_000


def test_a_class_without_images_is_an_empty_row(tmp_path):
    counts = np.array([[0, 0], [1, 3]])
    assert heat_map(matrix(counts, ["a", "b"]), "x").count("<title>") == 2
    save_heat_map(tmp_path / "c.png", matrix(counts, ["a" * 40, "猫$"]))
    with Image.open(tmp_path / "c.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 3
