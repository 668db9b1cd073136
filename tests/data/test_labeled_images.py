import pytest
from PIL import Image

from finetune.data.labeled_images import local_path
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.recipe import DataConfig

LONG = ["a" * 90, "b" * 90, "c" * 90]  # a name of a file has 255 bytes at most


@pytest.fixture
def folder(tmp_path):
    """A folder with four images far below it."""
    deep = tmp_path.joinpath(*LONG)
    deep.mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(deep / f"{i}.png")
    return tmp_path


def test_a_path_with_windows_separators_may_be_longer_than_a_name(folder):
    assert local_path(folder, "\\".join([*LONG, "0.png"])) == folder.joinpath(*LONG, "0.png")


def test_a_path_that_is_too_long_is_one_broken_image_among_others(folder):
    paths = ["\\".join([*LONG, f"{i}.png"]) for i in range(4)] + ["\\" + "x" * 300 + ".png"]
    (folder / "t.csv").write_text("\n".join(["file,label", *(f"{path},{'ab'[i % 2]}" for i, path in enumerate(paths))]))
    options = {"source": str(folder / "t.csv"), "validation": 0.0, "test": 0.5}
    with pytest.raises(DataError, match="x.png: cannot be used as an image: File name too long"):
        load_splits(DataConfig(**options), 0)
    (skipped,) = load_splits(DataConfig(**options, on_broken_image="skip"), 0).skipped
    assert "File name too long" in skipped
