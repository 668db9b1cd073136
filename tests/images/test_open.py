import io
import os
import socket
import struct
import subprocess
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from finetune.errors import DataError
from finetune.images.formats import readable_formats
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
        (b"\xc5\xd0\xd3\xc6" + bytes(30), "an EPS file, which is a program"),
        (b"%PDF-1.7\n", "a WMF or PDF file"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "a WMF or PDF file"),
        (b"\1\0\0\0" + bytes(36) + b" EMF", "an EMF file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an FPX or MIC file"),
        (b"GRIB\0\0\0\1", "a GRIB file"),
        (b"BUFR\0\0\0\1", "a BUFR file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"8BPS\0\1" + bytes(20), "a PSD file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC image, which needs: pip install "),
    ],
)
def test_formats_that_are_never_opened_are_named_whatever_the_file_is_called(data, message, tmp_path):
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


def test_no_other_format_of_pillow_is_opened(tmp_path):
    """Whatever plugins there are, and whatever a file is called: those that start programs or read other data."""
    Image.init()
    allowed = {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF"}
    assert set(readable_formats()) == allowed & set(Image.OPEN)
    assert set(readable_formats("a.tga")) - set(readable_formats("a.png")) == {"TGA"}
    for form in ("ICO", "PCX", "DDS", "SGI", "QOI", "EPS", "PDF", "ICNS"):
        data = encoded(form)
        (tmp_path / f"a.{form.lower()}").write_bytes(data)
        for image in (data, tmp_path / f"a.{form.lower()}"):
            with pytest.raises(DataError):
                open_image(image)


def test_no_program_is_started_for_an_image(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: started.append(arguments))
    (tmp_path / "a.png").write_bytes(encoded("EPS"))
    for image in (encoded("EPS"), tmp_path / "a.png", Image.open(io.BytesIO(encoded("EPS")))):
        with pytest.raises(DataError):
            open_image(image)
    assert not started


def test_a_pil_image_of_a_format_that_is_not_read_may_give_its_pixels():
    opened = Image.open(io.BytesIO(encoded("ICO")))
    with pytest.raises(DataError, match=r"a format that is not read \(ICO\); give its pixels: image.convert"):
        open_image(opened)
    assert open_image(opened.convert("RGB")).size == opened.size


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "nothing.png").symlink_to("absent.png")
    (tmp_path / "itself.png").symlink_to("itself.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
    reasons = {
        "pipe.png": "a pipe, not a file",
        "device.png": "a device, not a file",
        "s.png": "a socket, not a file",
        "nothing.png": "a link to nothing: absent.png",
        "itself.png": "a link that leads to itself",
        "a\0b.png": "null (byte|character)",  # as Python 3.11 and 3.13 say
        "x" * 300: "File name too long",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason):
            open_image(str(tmp_path / name))


def test_a_link_to_a_file_is_that_file(tmp_path):
    (tmp_path / "a").write_bytes(encoded("PNG"))
    (tmp_path / "link.png").symlink_to("a")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "link.png")), PIXELS)


def header(width, height):
    """A PNG of a size, without its pixels."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def canvas_of_65535():
    gif = bytearray(encoded("GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(gif)


def bitmap(width, height, compression=0):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 4 if compression else 24, compression, 0, 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 62, 0, 0, 62) + info + bytes(8)


def of_many_scans():
    jpeg = encoded("JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * 2_000_000 + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: header(30000, 30000), "900000000 pixels"),
        (lambda: header(10000, 9000), "10000 x 9000 pixels, more than 89,478,485"),
        (canvas_of_65535, "4294836225 pixels"),
        (lambda: bitmap(30000, 30000), "900000000 pixels"),
        (lambda: bitmap(9000, 9000, compression=2), "9000 x 9000 pixels, more than 16,777,216"),
        (lambda: b"P6 30000 30000 255 ", "900000000 pixels"),
        (lambda: encoded("PNG")[:33] + chunk(b"tEXt", b"k\0") * 100_001, "more than 100,000 chunks"),
    ],
    ids=["png", "png in between", "gif", "bmp", "run-length bmp", "ppm", "chunks"],
)
@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_images_that_would_take_all_memory_are_refused_before_they_are_decoded(data, reason):
    with pytest.raises(DataError, match=f"too large to open safely: .*{reason}"):
        open_image(data())


@pytest.mark.slow
def test_a_jpeg_of_many_scans_is_refused():
    with pytest.raises(DataError, match="scans of 30 x 20 pixels"):
        open_image(of_many_scans())


def test_a_file_that_is_too_large_to_be_an_image_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.write(encoded("PNG"))
        file.truncate(1 << 30)  # a hole, which takes no room
    with pytest.raises(DataError, match="1,074 MB; at most 268 MB"):
        open_image(tmp_path / "a.png")
