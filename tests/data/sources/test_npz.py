import io
import struct
import zipfile

import numpy as np
import pytest

from finetune.data.sources import read_source
from finetune.errors import DataError
from finetune.recipe import DataConfig

IMAGES, LABELS = np.zeros((4, 3, 3), np.uint8), np.array([0, 1, 0, 1])


def member(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text, version=1):
    """A .npy file of any header, without data."""
    text = text.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


def said(shape, descr="|u1"):
    return header(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}")


@pytest.fixture
def load(tmp_path):
    def write(compression=zipfile.ZIP_STORED, **members):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
            for name, data in {"labels.npy": member(LABELS), **members}.items():
                archive.writestr(name, data)
        return read_source(DataConfig(source=str(tmp_path / "a.npz")))["train"]

    return write


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            said((10**12, 3, 3)),
            r"its header says uint8 \[1000000000000, 3, 3\], 9,000,000,000,000 bytes, and it holds 0",
        ),
        (said((-4, -3, 3)) + bytes(36), "damaged: its header says"),
        (said((4, 3, 3)) + bytes(35), "and it holds 35"),
        (header("[" * 9000), "cannot be read as arrays"),
        (header("(" * 5000, version=2), "cannot be read as arrays"),
        (header("{" + " " * 60000 + "}"), "cannot be read as arrays"),
        (header("{}", version=3), r"NumPy's format \(3, 0\) is for records"),
        (member(np.array([{}] * 4, object)), "cannot be read as arrays: it holds Python objects"),
        (b"\x80\x04cos\nsystem\n", "cannot be read as arrays"),
        (b"", "cannot be read as arrays"),
    ],
    ids=lambda value: ascii(value[:30]) if isinstance(value, bytes) else "",
)
def test_a_header_that_lies_or_is_none_takes_no_memory(load, data, message):
    with pytest.raises(DataError, match=message):
        load(**{"images.npy": data})


@pytest.mark.slow
def test_a_little_that_would_become_a_lot_is_refused(load):
    bomb = said((300_000, 32, 32)) + bytes(300_000 * 32 * 32)
    with pytest.raises(DataError, match="307 MB in 0.3 MB of the file: too large to open safely"):
        load(zipfile.ZIP_DEFLATED, **{"images.npy": bomb})


def test_only_the_arrays_that_are_used_are_read(load):
    train = load(**{"images.npy": member(IMAGES), "../../etc/x.npy": said((10**12,))})
    assert len(train.images) == 4
    assert "'../../etc/x' is not used" in train.notes[0]


def test_two_arrays_of_one_name_are_refused(load):
    with pytest.raises(DataError, match="two arrays"):
        load(**{"images.npy": member(IMAGES), "images": member(IMAGES)})


def test_an_array_in_columns_is_the_same_images(load):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 5), np.uint8)
    np.testing.assert_array_equal(load(**{"images.npy": member(np.asfortranarray(pixels))}).images, pixels)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([2**40, 1, 2**40, 1], ("1", str(2**40))),
        ([-1.0, 1.0, -1.0, 1.0], ("-1", "1")),
        ([b"cat", b"dog"] * 2, ("cat", "dog")),
    ],
)
def test_labels_of_any_size_are_names(load, labels, names):
    assert load(**{"images.npy": member(IMAGES), "labels.npy": member(np.array(labels))}).names == names


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, 0.5])
def test_floats_that_are_no_whole_numbers_are_no_labels(load, value):
    with pytest.raises(DataError, match="labels must be integers or names"):
        load(**{"images.npy": member(IMAGES), "labels.npy": member(np.array([0, 1, 0, value]))})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (np.array(["a", "a"]), "two classes are called 'a'"),
        (np.array(["é", "e\u0301"]), r"'\\xe9' and 'e\\u0301' are one name"),
        (np.array(["a", "a "]), "'a' and 'a ' are one name"),
        (np.array(["a", "\x1b[31m"]), r"has the character '\\x1b'"),
        (np.array(["a", "\ud800"]), r"has the character '\\ud800'"),
        (np.array([1, 2]), "must be texts"),
        (np.array("ab"), "must be texts"),
        (np.array([b"a", b"\xff"]), "not texts"),
    ],
)
def test_class_names_that_are_not_one_each_are_refused(load, names, message):
    with pytest.raises(DataError, match=f"class_names: .*{message}"):
        load(**{"images.npy": member(IMAGES), "class_names.npy": member(names)})


def test_pixels_that_are_not_finite_are_refused(load):
    with pytest.raises(DataError, match="must be uint8"):
        load(**{"images.npy": member(np.full((4, 3, 3), np.nan))})


def test_a_file_that_is_no_archive_is_named(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a.npz: cannot be read as arrays"):
        read_source(DataConfig(source=str(tmp_path / "a.npz")))
