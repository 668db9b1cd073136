"""Options of a recipe's data that have no effect on what its source turns out to be."""

import datasets
import numpy as np
import pytest
from PIL import Image

from finetune.data.sources import read_source
from finetune.errors import DataError
from finetune.recipe import DataConfig


@pytest.fixture
def folder(tmp_path):
    """Two classes of images inside train/, validation/ and test/."""
    for split in ("train", "validation", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / name / "0.png")
    return tmp_path


@pytest.fixture
def arrays(tmp_path):
    file = tmp_path / "images.npz"
    np.savez(file, images=np.zeros((4, 5, 5), np.uint8), labels=np.arange(4) % 2)
    return file


def read(source, memory=None, **options):
    return read_source(DataConfig(source=str(source), **options), memory)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": "small"}, r"data\.subset: has no effect, as .* is no hub dataset: .*; received 'small'"),
        ({"revision": "v1"}, r"data\.revision: has no effect, as .* is no hub dataset"),
        ({"columns": {"label": "a"}}, r"data\.columns: has no effect, as .* is a folder of images"),
        ({"validation": 0.3}, r"data\.validation: has no effect, as the source has a validation split of its own"),
        ({"test": 0.3}, r"data\.test: has no effect, as .* test split of its own: leave it out \(~data\.test\)"),
    ],
)
def test_what_a_folder_of_images_has_no_use_for_is_refused(folder, options, message):
    with pytest.raises(DataError, match=message):
        read(folder, **options)


def test_defaults_written_out_as_in_a_saved_recipe_are_accepted(folder):
    written = {"subset": None, "revision": None, "columns": {}, "validation": 0.1, "test": 0.2}
    assert set(read(folder, **written, cache_shortest_edge=8)) == {"train", "validation", "test"}
    assert set(read(folder, validation=0)) == {"train", "validation", "test"}


def test_columns_named_for_another_source_are_no_mistake(folder):
    data = DataConfig(source=str(folder)).with_columns_of(DataConfig(source="images.csv", columns={"label": "a"}))
    assert set(read_source(data)) == {"train", "validation", "test"}


@pytest.mark.parametrize("options", [{"columns": {"label": "a"}}, {"cache_shortest_edge": 8}, {"subset": "small"}])
def test_what_arrays_have_no_use_for_is_refused(arrays, options):
    with pytest.raises(DataError, match=rf"data\.{next(iter(options))}: has no effect, as "):
        read(arrays, **options)


def test_a_dataset_in_memory_has_no_use_for_a_cache(folder):
    files = sorted(map(str, folder.glob("train/*/*.png")))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    memory = datasets.Dataset.from_dict({"image": files, "label": [0, 1]}, features=features)
    assert len(read("memory", memory, columns={"label": "label"})["train"].labels) == 2
    with pytest.raises(DataError, match=r"data\.cache_shortest_edge: has no effect, as the images are in memory"):
        read("memory", memory, cache_shortest_edge=8)
