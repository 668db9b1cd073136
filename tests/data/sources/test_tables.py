"""CSV, Parquet, saved and in-memory datasets."""

import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.data.sources import read_source
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.images.open import open_image
from finetune.recipe import Columns, DataConfig


def image_of(value):
    return Image.new("RGB", (6, 5), (value, 0, 0))


def png(value):
    file = io.BytesIO()
    image_of(value).save(file, "PNG")
    return file.getvalue()


def dataset(labels, feature, **more):
    features = {"image": datasets.Image(), "label": feature, **{name: datasets.Value("int64") for name in more}}
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(len(labels))], "label": labels, **more}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def red(split):
    """Which image each is, by its color."""
    return [open_image(split.images[i]).getpixel((0, 0))[0] for i in range(len(split))]


def load(source, memory=None, **options):
    return load_splits(DataConfig(source=str(source), **{"validation": 0.0, **options}), 0, memory)


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file into a folder with images."""
    (tmp_path / "images").mkdir()
    for i in range(8):
        image_of(i).save(tmp_path / "images" / f"{i}.png")

    def write(header, rows, name="images.csv", separator=","):
        path = tmp_path / name
        path.write_text("\n".join(separator.join(map(str, row)) for row in [header, *rows]) + "\n")
        return path

    return write


ANIMALS = datasets.ClassLabel(names=["dog", "cat"])  # not in alphabetical order


def test_paths_in_a_csv_are_relative_to_it_and_class_names_are_sorted(table):
    splits = load(table(["file", "animal"], [[f"images/{i}.png", "dog" if i % 2 else "cat"] for i in range(8)]))
    assert splits.class_names == ("cat", "dog")
    for split in (splits.train, splits.test):
        assert [value % 2 for value in red(split)] == split.labels.tolist()


def test_a_tsv_file_is_tab_separated(table):
    rows = [[f"images/{i}.png", i % 2] for i in range(8)]
    assert load(table(["file", "label"], rows, "images.tsv", "\t")).class_names == ("0", "1")


def test_class_names_that_are_numbers_are_sorted_numerically(table):
    splits = load(table(["file", "label"], [[f"images/{i}.png", (2, 10)[i % 2]] for i in range(8)]))
    assert splits.class_names == ("2", "10")


@pytest.mark.parametrize("names", [("001", "010"), ("false", "true"), ("no", "yes")])
def test_class_names_in_a_csv_are_verbatim(table, names):
    splits = load(table(["file", "label"], [[f"images/{i}.png", names[i % 2]] for i in range(8)]))
    assert splits.class_names == names


def test_a_column_of_split_names_gives_the_splits(table):
    names = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    rows = [[f"images/{i}.png", i % 2, name] for i, name in enumerate(names)]
    splits = load(table(["file", "label", "part"], rows))
    assert [red(split) for split in splits.named().values()] == [[0, 1, 2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("other", ["", "UNASSIGNED", "test_b"])
def test_a_column_of_most_rows_splits_is_refused_and_where_stated_leaves_the_others_out_with_their_line(table, other):
    names = ["train"] * 4 + ["test"] * 3 + [other]
    path = table(["file", "label", "part"], [[f"images/{i}.png", i % 2, name] for i, name in enumerate(names)])
    with pytest.raises(DataError, match=rf"column 'part' says the split of 7 rows, and '{other}' in line 9"):
        load(path)
    splits = load(path, columns=Columns(split="part"))
    assert [len(split) for split in splits.named().values()] == [4, 3]
    assert f"'{other}' is no split: not used: line 9" in " ".join(splits.notes)


def test_texts_of_which_some_are_words_for_splits_are_no_split_column(table):
    seen = ["train", "bus", "test", "car", "bus", "plane", "car", "bus"]
    rows = [[f"images/{i}.png", i % 2, seen[i]] for i in range(8)]
    splits = load(table(["file", "label", "seen"], rows), columns=Columns(label="label"), test=0.25)
    assert len(splits.test) == 2


def test_a_split_column_with_one_word_for_training_is_training_data(table):
    rows = [[f"images/{i}.png", i % 2, "Training"] for i in range(8)]
    assert len(load(table(["file", "label", "part"], rows), test=0.25).train) == 6


def test_a_split_column_in_files_of_splits_is_not_used_and_what_it_says_otherwise_is_told(tmp_path):
    images = [png(i) for i in range(4)]
    for split, column in (("train", ["train", "train", "test", "test"]), ("val", ["validation"] * 4)):
        rows = {"image": images, "label": ["a", "b"] * 2, "part": column}
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    (note,) = read_source(DataConfig(source=str(tmp_path)))["train"].notes
    assert "(train): column 'part' is not used" in note
    assert "in 2 rows, the first row 2: 'test'" in note
    with pytest.raises(DataError, match=r"data.columns.split: has no effect, as .* has splits of its own"):
        load(tmp_path, columns=Columns(split="part"))


def test_columns_that_could_be_the_label_are_listed(table):
    path = table(["file", "label", "width"], [[f"images/{i}.png", i % 2, 6] for i in range(8)])
    with pytest.raises(DataError, match=r"2 columns could be the label: label, width; name it as data.columns.label"):
        load(path)
    assert load(path, columns=Columns(label="label")).class_names == ("0", "1")


def test_a_table_without_images_is_an_error_that_lists_column_types(table):
    with pytest.raises(DataError, match=r"no column looks like images.*name \(text\), label \(number\)"):
        load(table(["name", "label"], [["a", 0], ["b", 1]]))


def test_a_missing_column_is_named_with_the_nearest_name(table):
    path = table(["file", "label"], [["images/0.png", 0], ["images/1.png", 1]])
    with pytest.raises(DataError, match=r"has no column 'lable' \(did you mean 'label'\?\); it has file, label"):
        load(path, columns=Columns(label="lable"))


def test_a_row_without_a_label_is_named(table):
    with pytest.raises(DataError, match="column 'label': 1 rows have no label, the first is line 3"):
        load(table(["file", "label"], [["images/0.png", "a"], ["images/1.png", ""], ["images/2.png", "b"]]))


def test_a_table_that_cannot_be_parsed_is_a_data_error(table):
    with pytest.raises(DataError, match=r"images.csv: line 2: has 4 fields, and the table has 2 columns"):
        load(table(["file", "label"], [["a.png", 1, 2, 3]]))


def test_columns_of_0_and_1_are_many_labels_per_image(table):
    rows = [[f"images/{i}.png", i % 2, int(i < 4)] for i in range(8)]
    splits = load(table(["file", "odd", "small"], rows), columns=Columns(label=["odd", "small"]))
    assert splits.class_names == ("odd", "small")
    assert splits.multi_label
    for split in (splits.train, splits.test):
        assert split.labels.tolist() == [[value % 2, value < 4] for value in red(split)]


def test_a_label_column_with_other_values_than_0_and_1_is_named(table):
    path = table(["file", "odd", "small"], [["images/0.png", 0, 3], ["images/1.png", 1, 0]])
    with pytest.raises(DataError, match="column 'small' must be 0 or 1 in each row; has 3"):
        load(path, columns=Columns(label=["odd", "small"]))


def test_declared_classes_keep_their_order():
    splits = load("memory", dataset([0, 1] * 4, ANIMALS))
    assert splits.class_names == ("dog", "cat")
    assert [value % 2 for value in red(splits.train)] == splits.train.labels.tolist()


def test_splits_that_declare_classes_in_another_order_are_matched_by_name():
    other = datasets.ClassLabel(names=["cat", "dog"])
    splits = load("memory", {"train": dataset([0, 1], ANIMALS), "test": dataset([0, 1], other)})
    assert splits.test.labels.tolist() == [1, 0]


def test_a_class_that_training_does_not_have_is_named():
    other = datasets.ClassLabel(names=["cat", "dog", "emu"])
    with pytest.raises(DataError, match=r"data \(test\): classes that training does not have: emu; it has: dog, cat"):
        load("memory", {"train": dataset([0, 1], ANIMALS), "test": dataset([0, 1, 2], other)})


def test_a_class_without_images_is_named():
    splits = load("memory", {"train": dataset([0, 0, 1, 1], ANIMALS), "test": dataset([0, 0], ANIMALS)})
    assert splits.notes == ("no test images of cat: test results say nothing about them",)


def test_a_test_split_with_withheld_labels_is_ignored():
    splits = load("memory", {"train": dataset([0, 1] * 4, ANIMALS), "test": dataset([-1, -1], ANIMALS)}, test=0.5)
    assert (len(splits.train), len(splits.test)) == (4, 4)


def test_plain_numbers_that_are_all_minus_one_are_withheld_labels():
    feature = datasets.Value("int64")
    splits = load("memory", {"train": dataset([0, 1] * 4, feature), "test": dataset([-1] * 3, feature)})
    assert len(splits.train) + len(splits.test) == 8


def test_training_images_with_withheld_labels_are_an_error():
    with pytest.raises(DataError, match=r"data \(train\): every label is -1"):
        load("memory", dataset([-1, -1], ANIMALS))


def test_a_single_column_of_classes_is_the_label_beside_other_columns():
    splits = load("memory", dataset([0, 1] * 4, ANIMALS, width=list(range(8))))
    assert splits.class_names == ("dog", "cat")


@pytest.mark.parametrize("values", [datasets.Value("int64"), ANIMALS])
def test_lists_of_one_class_in_every_row_are_single_classes(values):
    splits = load("memory", dataset([[0], [1]] * 4, datasets.Sequence(values)))
    assert not splits.multi_label
    assert sorted(splits.train.labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_lists_of_classes_are_many_labels_per_image():
    splits = load("memory", dataset([[0], [1], [0, 1], []] * 2, datasets.List(ANIMALS)))
    assert splits.class_names == ("dog", "cat")
    expected = [[1, 0], [0, 1], [1, 1], [0, 0]] * 2
    for split in (splits.train, splits.test):
        assert split.labels.tolist() == [expected[value] for value in red(split)]


def test_a_split_of_images_with_many_labels_has_its_share_of_each_class():
    rng = np.random.default_rng(0)
    rows = [[c for c in range(3) if rng.random() < 0.3] for _ in range(200)]
    feature = datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))
    splits = load("memory", dataset(rows, feature), test=0.25)
    assert len(splits.test) == 50
    np.testing.assert_allclose(
        splits.test.labels.sum(0), 0.25 * np.array([sum(c in r for r in rows) for c in range(3)]), atol=1
    )


def test_parquet_files_belong_to_the_split_that_their_names_begin_with(tmp_path):
    dataset([0, 1] * 2, ANIMALS).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    dataset([1, 0], ANIMALS).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    dataset([1, 0], ANIMALS).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    splits = load(tmp_path)
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert splits.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize("as_text", [True, False])
def test_paths_in_a_parquet_file_are_relative_to_it(tmp_path, monkeypatch, as_text):
    monkeypatch.chdir(tmp_path.parent)
    for folder in ("train", "test"):
        (tmp_path / folder / "img").mkdir(parents=True)
        for i in range(4):
            image_of(i).save(tmp_path / folder / "img" / f"{i}.png")
        paths = [f"img/{i}.png" for i in range(4)]
        table = {"image": paths if as_text else [{"bytes": None, "path": path} for path in paths], "label": [0, 1] * 2}
        pq.write_table(pa.table(table), tmp_path / folder / "a.parquet")
    splits = load(tmp_path)
    assert [red(split) for split in (splits.train, splits.test)] == [[0, 1, 2, 3]] * 2
    assert len(load(tmp_path / "train" / "a.parquet", test=0.5).train) == 2


def test_parquet_files_without_and_with_a_split_in_their_names_are_refused(tmp_path):
    for name in ("train-0", "more"):
        dataset([0, 1] * 2, ANIMALS).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"more.parquet: its name says no split.*call it train-more.parquet"):
        load(tmp_path)


def test_splits_whose_names_mean_none_are_named():
    data = {name: dataset([0, 1] * 2, ANIMALS) for name in ("train", "test", "unsupervised")}
    assert load("memory", data).notes == ("data: not used, as their names mean no split: unsupervised",)


@pytest.mark.parametrize("labels", [[0.0, 1.0, None, 1.0], [0.0, 1.0, 0.5, 1.0]])
def test_labels_as_floats_are_integers_or_refused(labels):
    table = dataset([0.0, 1.0] * 4, datasets.Value("float64"))
    assert load("memory", table).class_names == ("0", "1")
    with pytest.raises(DataError, match=r"row 2"):
        load("memory", dataset(labels, datasets.Value("float64")), columns=Columns(label="label"))


def test_a_single_parquet_file_is_training_data(tmp_path):
    dataset([0, 1] * 4, ANIMALS).to_parquet(tmp_path / "images.parquet")
    assert len(load(tmp_path / "images.parquet", test=0.5).train) == 4


def test_a_truncated_parquet_file_is_a_data_error(tmp_path):
    dataset([0, 1], ANIMALS).to_parquet(tmp_path / "images.parquet")
    content = (tmp_path / "images.parquet").read_bytes()
    (tmp_path / "images.parquet").write_bytes(content[:-20])
    with pytest.raises(DataError, match="images.parquet: cannot be read as Parquet"):
        load(tmp_path / "images.parquet")


def test_a_saved_dataset_is_read_from_its_folder(tmp_path):
    datasets.DatasetDict(train=dataset([0, 1], ANIMALS), test=dataset([1, 0], ANIMALS)).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved").test.labels.tolist() == [1, 0]


def test_unknown_split_names_are_listed():
    with pytest.raises(DataError, match="data: has no training split; its splits: a, b"):
        load("memory", {"a": dataset([0, 1], ANIMALS), "b": dataset([0, 1], ANIMALS)})


def test_source_memory_without_datasets_says_how_to_pass_them():
    with pytest.raises(DataError, match=r"finetune.run\(recipe, data=...\)"):
        load("memory")


def test_a_hub_dataset_that_cannot_be_loaded_is_a_data_error():
    with pytest.raises(DataError, match="nobody/nothing: no such folder, and it cannot be loaded from the hub"):
        load("nobody/nothing")
