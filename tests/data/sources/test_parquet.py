import io
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

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


def encoded(count=4):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return [file.getvalue()] * count


def shards(folder, *names):
    """Files of one split: their images are of classes in this order, or of plain numbers."""
    for i, classes in enumerate(names):
        feature = datasets.Value("int64") if classes is None else datasets.ClassLabel(names=classes)
        features = datasets.Features({"image": datasets.Value("binary"), "label": feature})
        rows = {"image": encoded(), "label": [0, 1, 0, 1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"train-{i}.parquet")


@pytest.mark.parametrize("second", [["dog", "cat"], None])
def test_files_of_a_split_that_declare_other_classes_are_refused_with_both(tmp_path, second):
    shards(tmp_path, ["cat", "dog"], second)
    with pytest.raises(
        DataError, match=r"train-1\.parquet: column 'label' declares .*train-0\.parquet the classes cat"
    ):
        read(tmp_path)


def test_files_of_a_split_with_other_columns_are_refused_with_the_column(tmp_path):
    for name, more in (("train-0", {}), ("train-1", {"note": ["x"] * 4})):
        pq.write_table(pa.table({"image": encoded(), "label": ["a", "b"] * 2, **more}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"train-1\.parquet: .*only one of both has note"):
        read(tmp_path)


def test_hidden_files_are_not_read_and_are_listed(tmp_path):
    shards(tmp_path, ["cat", "dog"])
    (tmp_path / "._train-0.parquet").write_bytes(b"x")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "train-0-checkpoint.parquet").write_bytes(
        (tmp_path / "train-0.parquet").read_bytes()
    )
    found = read(tmp_path)
    assert len(found.images) == 4
    assert [line.rpartition(": ")[2] for line in found.left_out] == ["a hidden file", "a hidden folder with 1 files"]


def test_files_in_deeper_folders_and_with_an_ending_in_capitals_are_read(tmp_path):
    (tmp_path / "data" / "test").mkdir(parents=True)
    shards(tmp_path / "data" / "test", ["cat", "dog"])
    (tmp_path / "data" / "test" / "train-0.parquet").rename(tmp_path / "data" / "test" / "0.parquet")
    shards(tmp_path, ["cat", "dog"])
    (tmp_path / "train-0.parquet").rename(tmp_path / "TRAIN.PARQUET")
    assert read_source(DataConfig(source=str(tmp_path))).keys() == {"train", "test"}


def test_images_that_no_table_names_are_listed(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    pq.write_table(pa.table({"image": ["a.png"] * 2, "label": ["x", "y"]}), tmp_path / "train.parquet")
    assert read(tmp_path).left_out == (f"{tmp_path / 'b.png'}: in none of the tables",)


def test_a_table_beside_the_images_of_a_class_is_no_source_and_is_listed(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    pq.write_table(pa.table({"vector": [1.0]}), tmp_path / "cat" / "embeddings.parquet")
    found = read(tmp_path)
    assert (len(found.images), found.left_out) == (2, (f"{tmp_path / 'cat' / 'embeddings.parquet'}: not an image",))


def test_a_file_without_rows_is_listed(tmp_path):
    shards(tmp_path, ["cat", "dog"])
    pq.write_table(pq.read_table(tmp_path / "train-0.parquet")[:0], tmp_path / "test.parquet")
    assert read(tmp_path).left_out == (f"{tmp_path / 'test.parquet'}: has no rows",)


@pytest.mark.parametrize("types", [(pa.large_binary(), pa.large_string()), (pa.binary_view(), pa.string_view())])
def test_images_and_labels_may_be_of_any_binary_and_text_type(tmp_path, types):
    image, text = types
    found = read(write(tmp_path, image=pa.array(encoded(), image), label=pa.array(["a", "b"] * 2, text)))
    assert found.names == ("a", "b")
    assert found.images[3] == encoded()[0]


def test_lists_of_a_0_or_1_for_each_class_are_many_labels(tmp_path):
    rows = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]]
    found = read(write(tmp_path, image=encoded(), label=rows))
    assert found.names == ("0", "1", "2")
    np.testing.assert_array_equal(found.labels, rows)
