import pickle

import datasets
import numpy as np
import pytest

from finetune.data import mapped_images
from finetune.data.labeled_images import EncodedImages, Split
from finetune.data.mapped_images import MappedImages, for_processes

LABELS = np.zeros(3, np.int32)


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch):
    monkeypatch.setattr(mapped_images, "_SMALL", 0)


def test_an_array_is_pickled_without_its_pixels(tmp_path):
    images = np.arange(3 * 64 * 64 * 3, dtype=np.uint8).reshape(3, 64, 64, 3)
    split = for_processes(Split(images, LABELS), tmp_path / "cache")
    assert isinstance(split.images, MappedImages)
    sent = pickle.dumps(split.images)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert len(received) == 3
    assert all((received[i] == images[i]).all() for i in range(3))
    for_processes(Split(images.copy(), LABELS), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_table_in_memory_is_pickled_without_its_rows(tmp_path):
    rows = [{"bytes": bytes([i]) * 500_000, "path": f"{i}.png"} for i in range(3)]
    encoded = EncodedImages(datasets.Dataset.from_dict({"image": rows}), "image")
    split = for_processes(Split(encoded, LABELS), tmp_path / "cache")
    sent = pickle.dumps(split.images)
    assert len(sent) < 50_000
    assert [pickle.loads(sent)[i] for i in range(3)] == [row["bytes"] for row in rows]
    assert split.name(2) == "row 2 (2.png)"


def test_without_room_the_images_stay_in_memory(tmp_path):
    (tmp_path / "cache").write_text("a file")
    split = Split(np.zeros((3, 8, 8), np.uint8), LABELS)
    assert for_processes(split, tmp_path / "cache") is split


def test_few_images_and_files_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_images, "_SMALL", 2**24)
    for images in (np.zeros((3, 8, 8), np.uint8), [tmp_path / "a.png"] * 3):
        split = Split(images, LABELS)
        assert for_processes(split, tmp_path / "cache") is split
