import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split
from finetune.data.sources import read_source
from finetune.errors import DataError
from finetune.recipe import DataConfig


def read(path):
    return read_source(DataConfig(source=str(path)))["train"]


def write(path, features=None, **columns):
    table = pa.table(columns)
    if features is not None:
        described = datasets.Features(features)
        table = table.replace_schema_metadata(described.arrow_schema.metadata)
    pq.write_table(table, path / "a.parquet")
    return path / "a.parquet"


@pytest.mark.slow
def test_a_file_of_a_few_bytes_and_a_billion_rows_is_refused(tmp_path):
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000_000, pa.int8()), ["a.png"])
    file = write(tmp_path, image=rows, label=rows)
    with pytest.raises(DataError, match=r"bytes are 10,000,000 rows"):
        read(file)


@pytest.mark.parametrize("names", [["cat", "cat "], ["\xe9", "e\u0301"]], ids=["spaces", "Unicode forms"])
def test_two_declared_classes_of_one_name_are_refused_and_both_are_shown(tmp_path, names):
    features = {"image": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    file = write(tmp_path, features, image=["a.png", "b.png"], label=pa.array([0, 1], pa.int64()))
    with pytest.raises(DataError, match="are one name") as raised:
        read(file)
    assert all(ascii(name) in str(raised.value) for name in names)


def test_texts_that_are_one_class_in_two_unicode_forms_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"'\\xe9' and 'e\\u0301' are one name"):
        read(write(tmp_path, image=["a.png", "b.png"], label=["\xe9", "e\u0301"]))


@pytest.mark.parametrize("label", [2, -2])
def test_a_label_that_is_no_declared_class_is_named(tmp_path, label):
    features = {"image": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    file = write(tmp_path, features, image=["a.png", "b.png"], label=pa.array([0, label], pa.int64()))
    with pytest.raises(DataError, match=f"label {label}, and there are 2 classes|cannot be read as Parquet"):
        read(file)


def test_images_in_a_table_are_opened_as_others_are(tmp_path):
    """Pipes, devices and programs behind paths and bytes are broken images, each with its reason."""
    os.mkfifo(tmp_path / "pipe.png")
    rows = [
        ({"bytes": None, "path": "pipe.png"}, "a pipe, not a file"),
        ({"bytes": None, "path": "/dev/zero"}, "a device, not a file"),
        ({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n", "path": "a.png"}, "an EPS file, which is a program"),
        ({"bytes": b"", "path": None}, "an empty file"),
        (None, "an empty file"),
    ]
    source = read(write(tmp_path, image=[row for row, _ in rows], label=["a", "b", "a", "b", "a"]))
    problems = scan_images(Split(source.images, source.labels)).stats.problem
    for problem, (_, reason) in zip(problems, rows, strict=True):
        assert reason in problem
