import io
import struct
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from finetune.errors import DataError
from finetune.images.open import open_image, open_with_mode

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def encoded(form, **options):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, form, **options)
    return stream.getvalue()


@pytest.fixture
def broken(tmp_path):
    """A folder with one file for each way in which an image can be broken."""
    (tmp_path / "notes.png").write_text("these are notes")
    (tmp_path / "half.jpg").write_bytes(encoded("JPEG")[:-300])
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.png", "not an image in a format that Pillow reads"),
        ("half.jpg", "cannot be used as an image: .*truncated"),
        ("empty.png", "an empty file"),
        ("folder.jpg", "a folder, not an image"),
        ("absent.jpg", "no such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(broken, name, message):
    for path in (broken / name, str(broken / name)):
        with pytest.raises(DataError, match=f"{name}: {message}"):
            open_image(path)


def test_bytes_that_are_not_an_image_are_rejected():
    with pytest.raises(DataError, match="image bytes: not an image"):
        open_image(b"these are notes")


def test_a_pil_image_of_a_truncated_file_is_named(broken):
    with (
        Image.open(broken / "half.jpg") as image,
        pytest.raises(DataError, match=r"half.jpg: cannot be used as an image"),
    ):
        open_image(image)


# EXIF orientation -> the stored pixels as they should be shown
UPRIGHT = {1: PIXELS, 3: PIXELS[::-1, ::-1], 6: np.rot90(PIXELS, -1), 8: np.rot90(PIXELS, 1), 2: PIXELS[:, ::-1]}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_exif_orientation_is_applied_to_bytes_files_and_pil_images(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(data)
    for image in (data, tmp_path / "a.png", Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(np.asarray(open_image(image)), UPRIGHT[orientation])
        np.testing.assert_array_equal(np.asarray(open_image(open_image(image))), UPRIGHT[orientation])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_is_converted_to_rgb(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    opened, stored_mode = open_with_mode(image)
    assert (opened.mode, opened.size) == ("RGB", (30, 20))
    assert stored_mode == mode


def test_arrays_may_be_grey_or_rgb():
    np.testing.assert_array_equal(np.asarray(open_image(PIXELS)), PIXELS)
    grey = PIXELS[..., 0]
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(np.asarray(open_image(array)), np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.parametrize(
    "array",
    [
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int64),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_other_arrays_are_rejected_with_their_dtype_and_shape(array):
    with pytest.raises(DataError, match=r"must be uint8 \[H, W\] or \[H, W, 3\]; received") as raised:
        open_image(array)
    assert f"{array.dtype} {list(array.shape)}" in str(raised.value)


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "wide.png"))[..., 0].ravel(), np.arange(256))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind, data):
    """A PNG with one more chunk behind its header."""
    png = encoded("PNG")
    return png[:33] + chunk(kind, data) + png[33:]


LARGE = zlib.compress(b"x" * (3 << 20))  # three megabytes in a few kilobytes


@pytest.mark.parametrize(
    "png",
    [
        with_chunk(b"zTXt", b"Comment\0\0" + LARGE),
        with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
        with_chunk(b"iCCP", b"profile\0\0" + LARGE),
        with_chunk(b"iCCP", b"profile\0\0" + b"no profile"),
    ],
    ids=["text", "xmp", "large profile", "broken profile"],
)
def test_texts_and_profiles_of_any_size_are_no_reason_to_refuse_the_pixels(png, tmp_path):
    (tmp_path / "a.png").write_bytes(png)
    for image in (png, tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(np.asarray(open_image(image)), PIXELS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\1" * 9]
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_no_reason_to_refuse_the_pixels(exif, form):
    options = {"quality": 95} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    plain = np.asarray(open_image(encoded(form, **options)))
    np.testing.assert_array_equal(np.asarray(open_image(encoded(form, exif=exif, **options))), plain)


def test_broken_pixels_stay_an_error_whatever_texts_there_are():
    with pytest.raises(DataError, match="cannot be used as an image"):
        open_image(with_chunk(b"zTXt", b"Comment\0\0" + LARGE)[:-40])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "an EPS file, which is a program"),
        (b"%PDF-1.7\n", "a WMF or PDF file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC image, which needs: pip install "),
    ],
)
def test_formats_that_need_another_program_are_named(data, message, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    for image in (data, tmp_path / "a.png"):
        with pytest.raises(DataError, match=message):
            open_image(image)


@pytest.mark.parametrize("image", [3, None, ["a.png"], {"bytes": b"secret" * 99}])
def test_another_kind_of_input_is_named_without_its_content(image):
    with pytest.raises(DataError, match=rf"received {type(image).__name__}$"):
        open_image(image)


def test_buffers_and_arrays_of_other_libraries_are_images():
    data = encoded("PNG")
    for image in (bytearray(data), memoryview(data), jnp.asarray(PIXELS)):
        np.testing.assert_array_equal(np.asarray(open_image(image)), PIXELS)
