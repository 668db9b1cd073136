import numpy as np
import pytest
from PIL import Image

from finetune.images.fonts import font_for
from finetune.images.grid import save_image_grid


@pytest.mark.parametrize("text", ["cat", "été", "größe", "кошка", "γάτα", "a b", ""])
def test_a_font_has_every_character_of_european_scripts(text):
    assert font_for(text) is not None


def test_a_character_that_no_font_here_has_is_told():
    assert font_for("cat \U0010ffff") is None


def test_captions_in_other_scripts_are_drawn_as_letters_and_not_as_boxes(tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    save_image_grid(tmp_path / "a.png", images, ["кот", "дом", "été"])
    with Image.open(tmp_path / "a.png") as grid:
        cells = [np.asarray(grid.crop((128 * i, 127, 128 * i + 30, 142))) for i in range(3)]
    assert all((cell < 128).any() for cell in cells)
    assert not np.array_equal(cells[0], cells[1])  # boxes would be the same
