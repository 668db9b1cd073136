import numpy as np
import pytest
from photographs import encoded, photograph
from PIL import Image

from finetune.errors import DataError
from finetune.images import fast_decode
from finetune.images.fast_decode import decode_crop
from finetune.images.open import open_image
from finetune.images.spec import ImageSpec

SPEC = ImageSpec(64, 64, None, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BOX = (40, 30, 440, 330)


def crop(image, box=BOX):
    return decode_crop(image, lambda width, height: box, SPEC)


def by_pillow(image, box=BOX):
    return np.asarray(open_image(image).resize((64, 64), Image.Resampling.BICUBIC, box=box))


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.fixture
def refuse_pillow(monkeypatch):
    monkeypatch.setattr(fast_decode, "open_image", lambda image: pytest.fail("took the slow way"))


@pytest.mark.parametrize("box", [(40, 30, 104, 94), (40, 30, 140, 110), (0, 0, 500, 375), (3, 5, 43, 45)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpegs_take_the_fast_way_to_nearly_the_same_pixels(box, mode, options, refuse_pillow):
    data = encoded(photograph(500, 375).convert(mode), **options)
    found = crop(data, box)
    assert (found.dtype, found.shape) == (np.uint8, (64, 64, 3))
    assert difference(found, by_pillow(data, box)) < 2.5


def test_a_box_that_is_enlarged_is_where_it_should_be(refuse_pillow):
    """Half a pixel aside would show: the gradient is steep."""
    ramp = np.tile(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (300, 1, 3))
    data = encoded(Image.fromarray(ramp), quality=98)
    for box in [(100, 100, 130, 130), (100, 100, 230, 230), (16, 8, 316, 288)]:
        assert difference(crop(data, box), by_pillow(data, box)) < 2


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_jpegs_are_turned_before_they_are_cut(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(500, 375), exif=exif)
    box = (40, 30, 300, 330)
    assert difference(crop(data, box), by_pillow(data, box)) < 2.5


def test_an_orientation_in_xmp_alone_counts_as_well():
    data = encoded(photograph(500, 375), xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    assert open_image(data).size == (375, 500)
    box = (40, 30, 300, 330)
    assert difference(crop(data, box), by_pillow(data, box)) < 2.5


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_every_kind_of_jpeg_is_the_image_that_evaluation_sees(mode):
    data = encoded(photograph(500, 375).convert(mode))
    assert difference(crop(data), by_pillow(data)) < 2.5


@pytest.mark.parametrize(
    ("mode", "format"), [("P", "GIF"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("RGB", "WEBP")]
)
def test_other_formats_go_through_pillow(mode, format):
    data = encoded(photograph(500, 375).convert(mode), format)
    assert difference(crop(data), by_pillow(data)) < 3


def test_paths_arrays_and_images_are_taken_as_well(tmp_path):
    image = photograph(500, 375)
    image.save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(image), image):
        np.testing.assert_array_equal(crop(given), crop(image))


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_truncated_jpeg_is_refused_however_little_is_missing(kept):
    data = encoded(photograph(500, 375))
    with pytest.raises(DataError, match="cannot be used as an image"):
        crop(data[: int(kept * len(data))])


def test_a_missing_file_and_a_file_that_is_no_image_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg: no such file"):
        crop(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.jpg: not an image"):
        crop(tmp_path / "text.jpg")


def test_a_jpeg_too_large_to_open_safely_is_refused(monkeypatch):
    data = encoded(photograph(500, 375))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="too large to open safely"):
        crop(data)
