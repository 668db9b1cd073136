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


def fast_crop(image, box=BOX):
    return decode_crop(image, lambda width, height: box, SPEC)


def pillow_crop(image, box=BOX):
    return np.asarray(open_image(image).resize((64, 64), Image.Resampling.BICUBIC, box=box))


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.fixture
def forbid_pillow(monkeypatch):
    monkeypatch.setattr(fast_decode, "open_image", lambda image: pytest.fail("decoded by Pillow"))


@pytest.mark.parametrize("box", [(40, 30, 104, 94), (40, 30, 140, 110), (0, 0, 500, 375), (3, 5, 43, 45)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpegs_are_decoded_without_pillow_to_nearly_the_same_pixels(box, mode, options, forbid_pillow):
    data = encoded(photograph(500, 375).convert(mode), **options)
    pixels = fast_crop(data, box)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (64, 64, 3))
    assert difference(pixels, pillow_crop(data, box)) < 2.5


def test_a_small_box_is_enlarged_without_a_shift(forbid_pillow):
    """The gradient is steep enough to show a shift of half a pixel."""
    ramp = np.tile(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (300, 1, 3))
    data = encoded(Image.fromarray(ramp), quality=98)
    for box in [(100, 100, 130, 130), (100, 100, 230, 230), (16, 8, 316, 288)]:
        assert difference(fast_crop(data, box), pillow_crop(data, box)) < 2


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_exif_orientation_is_applied_before_cropping(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(500, 375), exif=exif)
    box = (40, 30, 300, 330)
    assert difference(fast_crop(data, box), pillow_crop(data, box)) < 2.5


def test_an_orientation_in_xmp_only_is_applied_too():
    data = encoded(photograph(500, 375), xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    assert open_image(data).size == (375, 500)
    box = (40, 30, 300, 330)
    assert difference(fast_crop(data, box), pillow_crop(data, box)) < 2.5


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_jpegs_of_every_mode_look_as_in_evaluation(mode):
    data = encoded(photograph(500, 375).convert(mode))
    assert difference(fast_crop(data), pillow_crop(data)) < 2.5


@pytest.mark.parametrize(
    ("mode", "format"), [("P", "GIF"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("RGB", "WEBP")]
)
def test_other_formats_are_decoded_by_pillow(mode, format):
    data = encoded(photograph(500, 375).convert(mode), format)
    assert difference(fast_crop(data), pillow_crop(data)) < 3


def test_paths_arrays_and_pil_images_are_accepted_too(tmp_path):
    image = photograph(500, 375)
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(image)):
        np.testing.assert_array_equal(fast_crop(source), fast_crop(image))


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_truncated_jpeg_is_refused_however_little_is_missing(kept):
    data = encoded(photograph(500, 375))
    with pytest.raises(DataError, match="cannot be used as an image"):
        fast_crop(data[: int(kept * len(data))])


def test_a_missing_file_and_a_file_that_is_not_an_image_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg: no such file"):
        fast_crop(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.jpg: not an image"):
        fast_crop(tmp_path / "text.jpg")


def test_a_jpeg_too_large_to_open_safely_is_refused(monkeypatch):
    data = encoded(photograph(500, 375))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="too large to open safely"):
        fast_crop(data)
