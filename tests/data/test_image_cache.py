import numpy as np
import pytest
from PIL import Image

from finetune.data import image_cache
from finetune.data.image_cache import cached
from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split
from finetune.errors import DataError


@pytest.fixture
def split(tmp_path):
    files = []
    for i, size in enumerate([(40, 30), (30, 50), (8, 12)]):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), np.uint8)).save(files[-1])
    return scan_images(Split(files, np.arange(3, dtype=np.int32)))


def test_images_are_shrunk_to_the_shorter_edge_and_smaller_ones_are_unchanged(split, tmp_path):
    result = cached(split, 20, tmp_path / "cache")
    assert [result.images[i].shape for i in range(3)] == [(20, 27, 3), (33, 20, 3), (12, 8, 3)]
    np.testing.assert_array_equal(result.images[2], np.asarray(Image.open(split.images[2])))
    assert result.labels.tolist() == [0, 1, 2]


def test_a_second_time_decodes_nothing(split, tmp_path, monkeypatch):
    first = cached(split, 20, tmp_path / "cache")
    monkeypatch.setattr(image_cache, "open_image", lambda image: pytest.fail("decoded again"))
    again = cached(split, 20, tmp_path / "cache")
    for i in range(3):
        np.testing.assert_array_equal(first.images[i], again.images[i])


def test_each_size_and_content_has_its_own_cache(split, tmp_path):
    for size, images in [(20, split), (10, split), (20, split.take(np.array([1, 0]))), (20, split)]:
        cached(images, size, tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 3


def test_to_verify_is_to_write_it_again(split, tmp_path):
    cached(split, 20, tmp_path / "cache")
    (pixels,) = (tmp_path / "cache" / "images").glob("*/pixels")
    good = pixels.read_bytes()
    pixels.write_bytes(bytes(len(good)))
    assert not cached(split, 20, tmp_path / "cache").images[0].any()
    assert cached(split, 20, tmp_path / "cache", verify=True).images[0].any()


def test_a_broken_image_is_named_and_leaves_no_cache(split, tmp_path):
    split.images[1].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"1\.png"):
        cached(split, 20, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "images").iterdir() if path.suffix != ".new"]


def test_a_subset_reads_from_the_same_file(split, tmp_path):
    result = cached(split, 20, tmp_path / "cache").take(np.array([2, 0]))
    assert [image.shape for image in result.images] == [(12, 8, 3), (20, 27, 3)]
