"""Damaged images, arrays and tables: each is used or is an error of ours, within 5 seconds and 1 GB."""

import io
import resource
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.data.sources import read_source
from finetune.errors import DataError, FinetuneError
from finetune.images.open import open_image
from finetune.recipe import DataConfig

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MANY = settings(
    max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
ENDS = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]  # of what four bytes can say
SECONDS, MEGABYTES = 5, 1024


@contextmanager
def bounded():
    """In processor time, as others use the machine as well; memory by the process's peak."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@st.composite
def damaged(draw, whole):
    """One of some files with bytes that are changed, taken out, put in or repeated, or cut off."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)) | st.integers(0, min(64, len(data))))
        match draw(st.sampled_from(["change", "ends", "take", "put", "repeat", "cut"])):
            case "change":
                new = draw(st.binary(min_size=1, max_size=4))
                data[at : at + len(new)] = new
            case "ends":
                data[at : at + 4] = draw(st.sampled_from(ENDS))
            case "take":
                del data[at : at + draw(st.integers(1, 32))]
            case "put":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "repeat":
                data[at:at] = data[at : at + 64] * draw(st.integers(1, 20))
            case "cut":
                del data[at:]
    return bytes(data)


def encoded(form, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def exif():
    orientation = Image.Exif()
    orientation[0x0112] = 6
    orientation[0x010E] = "a description"
    return orientation


FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (14, 9), "red")]}
IMAGES = [
    encoded("JPEG", exif=exif(), icc_profile=b"profile" * 9),
    encoded("JPEG", "CMYK", progressive=True),
    encoded("JPEG", "L"),
    encoded("PNG", exif=exif()),
    encoded("PNG", "P"),
    encoded("PNG", "LA", icc_profile=b"profile"),
    encoded("PNG", **FRAMES),
    encoded("WEBP", exif=exif()),
    encoded("WEBP", "RGBA", lossless=True),
    encoded("WEBP", **FRAMES),
    encoded("BMP"),
    encoded("BMP", "P"),
    encoded("GIF", **FRAMES),
    encoded("TIFF", exif=exif()),
    encoded("TIFF", compression="tiff_lzw"),
    encoded("TIFF", compression="tiff_adobe_deflate"),
    encoded("TIFF", compression="jpeg"),
    encoded("TIFF", "1", compression="group4"),
    encoded("TIFF", **FRAMES),
    encoded("AVIF", speed=10),
    encoded("JPEG2000"),
    encoded("PPM"),
    encoded("PPM", "L"),
]


@MANY
@given(damaged(IMAGES))
def test_damaged_images(data):
    with bounded():
        try:
            assert open_image(data).mode == "RGB"
        except DataError:
            return


@settings(MANY, max_examples=500)
@given(damaged([encoded("TGA"), encoded("TGA", compression="tga_rle"), encoded("PNG")]))
def test_damaged_images_with_the_name_of_a_format_without_a_signature(data):
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / "a.tga"
        path.write_bytes(data)
        try:
            assert open_image(path).mode == "RGB"
        except DataError:
            return


def read(name, data):
    """Reads a file as a source, and each of its images; our own errors are fine."""
    with tempfile.TemporaryDirectory() as folder, bounded():
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            sources = read_source(DataConfig(source=str(path)))
        except FinetuneError:
            return
        for source in sources.values():
            assert len(source.images) == len(source.labels)
            assert len(set(source.names)) == len(source.names)
            for i in range(min(3, len(source.images))):
                try:
                    open_image(source.images[i])
                except DataError:
                    continue


def saved(save, **arrays):
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def npz_of(member):
    """A .npz file in which the bytes of ``images`` are these, whatever they are."""
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("images.npy", member)
        archive.writestr("labels.npy", npy(LABELS))
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(2, 0))
    return stream.getvalue()


PIXELS, LABELS = np.arange(8 * 4 * 5, dtype=np.uint8).reshape(8, 4, 5), np.arange(8) % 2
NPZ = [
    saved(np.savez, images=PIXELS, labels=LABELS, class_names=np.array(["a", "b"])),
    saved(np.savez_compressed, x_train=PIXELS, y_train=LABELS.astype(np.float32), x_test=PIXELS, y_test=LABELS),
    saved(np.savez, images=np.asfortranarray(PIXELS), labels=np.array([b"a", b"b"] * 4)),
    saved(np.savez, images=np.array([{}], object), labels=LABELS[:1]),
]


@MANY
@given(damaged(NPZ) | damaged([npy(PIXELS), npy(PIXELS[::2])]).map(npz_of))
def test_damaged_arrays(data):
    read("a.npz", data)


def parquet(table, **options):
    stream = io.BytesIO()
    pq.write_table(pa.table(table), stream, **options)
    return stream.getvalue()


PICTURE = encoded("PNG")
PARQUET = [
    parquet({"image": [PICTURE] * 6, "label": ["a", "b"] * 3}),
    parquet({"image": ["a.png", "b.png"] * 3, "label": [0, 1] * 3, "split": ["train", "test"] * 3}),
    parquet({"image": [{"bytes": PICTURE, "path": None}] * 4, "label": [[0], [0, 1]] * 2}, compression="zstd"),
]


@MANY
@given(damaged(PARQUET))
def test_damaged_parquet_files(data):
    read("a.parquet", data)


CSV = [
    b"file,label\na.png,cat\nb.png,dog\n",
    'file;label;split\n"a.png";"é";train\nb.png;e\u0301;test\n'.encode(),
    "file\tlabel\na.png\t1\nb.png\t2\n".encode("utf-16"),
    b"a.png,1e999\nb.png,99999999999999999999999\n/dev/zero.png,nan\n",
]


@MANY
@given(damaged(CSV))
def test_damaged_tables(data):
    read("a.csv", data)
