"""Tables of images: CSV, Parquet, saved and in-memory datasets."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.images.open import open_image
from finetune.recipe import Columns, DataConfig


def picture(value):
    return Image.new("RGB", (6, 5), (value, 0, 0))


def png(value):
    file = io.BytesIO()
    picture(value).save(file, "PNG")
    return file.getvalue()


def dataset(labels, feature, **more):
    features = {"image": datasets.Image(), "label": feature, **{name: datasets.Value("int64") for name in more}}
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(len(labels))], "label": labels, **more}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def red(split):
    """Which picture each image is, by its colour."""
    return [open_image(split.images[i]).getpixel((0, 0))[0] for i in range(len(split))]


def load(source, memory=None, **options):
    return load_splits(DataConfig(source=str(source), **{"validation": 0.0, **options}), 0, memory)


@pytest.fixture
def table(tmp_path):
    """A folder with pictures and a way to write a CSV beside them."""
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        picture(i).save(tmp_path / "pictures" / f"{i}.png")

    def write(header, rows, name="images.csv", separator=","):
        path = tmp_path / name
        path.write_text("\n".join(separator.join(map(str, row)) for row in [header, *rows]) + "\n")
        return path

    return write


ANIMALS = datasets.ClassLabel(names=["dog", "cat"])  # not in alphabetical order


def test_a_csvs_paths_are_relative_to_it_and_its_labels_sorted_names(table):
    splits = load(table(["file", "animal"], [[f"pictures/{i}.png", "dog" if i % 2 else "cat"] for i in range(8)]))
    assert splits.class_names == ("cat", "dog")
    for split in (splits.train, splits.test):
        assert [value % 2 for value in red(split)] == split.labels.tolist()


def test_tab_separated_is_read_by_its_name(table):
    rows = [[f"pictures/{i}.png", i % 2] for i in range(8)]
    assert load(table(["file", "label"], rows, "images.tsv", "\t")).class_names == ("0", "1")


def test_labels_that_are_numbers_sort_as_numbers(table):
    splits = load(table(["file", "label"], [[f"pictures/{i}.png", (2, 10)[i % 2]] for i in range(8)]))
    assert splits.class_names == ("2", "10")


@pytest.mark.parametrize("names", [("001", "010"), ("false", "true"), ("no", "yes")])
def test_class_names_of_a_csv_are_as_written(table, names):
    splits = load(table(["file", "label"], [[f"pictures/{i}.png", names[i % 2]] for i in range(8)]))
    assert splits.class_names == names


def test_a_column_of_split_names_makes_the_splits(table):
    names = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    rows = [[f"pictures/{i}.png", i % 2, name] for i, name in enumerate(names)]
    splits = load(table(["file", "label", "part"], rows))
    assert [red(split) for split in splits.named().values()] == [[0, 1, 2, 3], [4, 5], [6, 7]]


def test_several_columns_that_could_be_the_label_are_listed(table):
    path = table(["file", "label", "width"], [[f"pictures/{i}.png", i % 2, 6] for i in range(8)])
    with pytest.raises(DataError, match=r"2 columns could be the label: label, width; name it as data.columns.label"):
        load(path)
    assert load(path, columns=Columns(label="label")).class_names == ("0", "1")


def test_a_table_without_images_says_what_its_columns_are(table):
    with pytest.raises(DataError, match=r"no column looks like images.*name \(text\), label \(number\)"):
        load(table(["name", "label"], [["a", 0], ["b", 1]]))


def test_a_column_that_is_not_there_is_named_with_the_nearest(table):
    path = table(["file", "label"], [["pictures/0.png", 0], ["pictures/1.png", 1]])
    with pytest.raises(DataError, match=r"has no column 'lable' \(did you mean 'label'\?\); it has file, label"):
        load(path, columns=Columns(label="lable"))


def test_a_row_without_a_label_is_named(table):
    with pytest.raises(DataError, match="column 'label': 1 rows have no label, the first is row 1"):
        load(table(["file", "label"], [["pictures/0.png", "a"], ["pictures/1.png", ""], ["pictures/2.png", "b"]]))


def test_a_table_that_cannot_be_parsed_is_one_message(table):
    with pytest.raises(DataError, match=r"images.csv: cannot be read as a table"):
        load(table(["file", "label"], [["a.png", 1, 2, 3]]))


def test_columns_of_zero_and_one_are_images_with_several_labels(table):
    rows = [[f"pictures/{i}.png", i % 2, int(i < 4)] for i in range(8)]
    splits = load(table(["file", "odd", "small"], rows), columns=Columns(label=["odd", "small"]))
    assert splits.class_names == ("odd", "small")
    assert splits.multi_label
    for split in (splits.train, splits.test):
        assert split.labels.tolist() == [[value % 2, value < 4] for value in red(split)]


def test_a_column_that_is_not_zero_or_one_is_named(table):
    path = table(["file", "odd", "small"], [["pictures/0.png", 0, 3], ["pictures/1.png", 1, 0]])
    with pytest.raises(DataError, match="column 'small' must be 0 or 1 in each row; has 3"):
        load(path, columns=Columns(label=["odd", "small"]))


def test_declared_classes_keep_their_order():
    splits = load("memory", dataset([0, 1] * 4, ANIMALS))
    assert splits.class_names == ("dog", "cat")
    assert [value % 2 for value in red(splits.train)] == splits.train.labels.tolist()


def test_splits_that_declare_their_classes_in_another_order_agree_by_name():
    other = datasets.ClassLabel(names=["cat", "dog"])
    splits = load("memory", {"train": dataset([0, 1], ANIMALS), "test": dataset([0, 1], other)})
    assert splits.test.labels.tolist() == [1, 0]


def test_a_class_that_training_does_not_have_stops_with_its_name():
    other = datasets.ClassLabel(names=["cat", "dog", "emu"])
    with pytest.raises(DataError, match=r"data \(test\): classes that training does not have: emu; it has: dog, cat"):
        load("memory", {"train": dataset([0, 1], ANIMALS), "test": dataset([0, 1, 2], other)})


def test_a_class_without_images_stops_with_its_name():
    with pytest.raises(DataError, match=r"data \(test\): no images of cat"):
        load("memory", {"train": dataset([0, 1], ANIMALS), "test": dataset([0, 0], ANIMALS)})


def test_a_test_split_whose_labels_are_withheld_counts_as_absent():
    splits = load("memory", {"train": dataset([0, 1] * 4, ANIMALS), "test": dataset([-1, -1], ANIMALS)}, test=0.5)
    assert (len(splits.train), len(splits.test)) == (4, 4)


def test_training_images_without_labels_are_refused():
    with pytest.raises(DataError, match=r"data \(train\): every label is -1"):
        load("memory", dataset([-1, -1], ANIMALS))


def test_the_one_class_column_is_the_label_whatever_else_there_is():
    splits = load("memory", dataset([0, 1] * 4, ANIMALS, width=list(range(8))))
    assert splits.class_names == ("dog", "cat")


def test_lists_of_classes_are_images_with_several_labels():
    splits = load("memory", dataset([[0], [1], [0, 1], []] * 2, datasets.List(ANIMALS)))
    assert splits.class_names == ("dog", "cat")
    shown = {value: labels for s in (splits.train, splits.test) for value, labels in zip(red(s), s.labels.tolist())}  # noqa: B905
    assert [shown[i] for i in range(4)] == [[1, 0], [0, 1], [1, 1], [0, 0]]


def test_splitting_sets_of_labels_keeps_each_classs_share():
    rng = np.random.default_rng(0)
    rows = [[c for c in range(3) if rng.random() < share] for _ in range(200) for share in [0.3]]
    feature = datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))
    splits = load("memory", dataset(rows, feature), test=0.25)
    assert len(splits.test) == 50
    np.testing.assert_allclose(
        splits.test.labels.sum(0), 0.25 * np.array([sum(c in r for r in rows) for c in range(3)]), atol=1
    )


def test_parquet_files_are_split_by_what_their_names_begin_with(tmp_path):
    dataset([0, 1] * 2, ANIMALS).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    dataset([1, 0], ANIMALS).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    dataset([1, 0], ANIMALS).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    splits = load(tmp_path)
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert splits.test.labels.tolist() == [1, 0]


def test_a_single_parquet_file_is_training_data(tmp_path):
    dataset([0, 1] * 4, ANIMALS).to_parquet(tmp_path / "images.parquet")
    assert len(load(tmp_path / "images.parquet", test=0.5).train) == 4


def test_a_truncated_parquet_file_is_one_message(tmp_path):
    dataset([0, 1], ANIMALS).to_parquet(tmp_path / "images.parquet")
    whole = (tmp_path / "images.parquet").read_bytes()
    (tmp_path / "images.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="images.parquet: cannot be read as Parquet"):
        load(tmp_path / "images.parquet")


def test_a_saved_dataset_is_read_from_its_folder(tmp_path):
    datasets.DatasetDict(train=dataset([0, 1], ANIMALS), test=dataset([1, 0], ANIMALS)).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved").test.labels.tolist() == [1, 0]


def test_splits_of_unknown_names_are_listed():
    with pytest.raises(DataError, match="data: has no training split; its splits: a, b"):
        load("memory", {"a": dataset([0, 1], ANIMALS), "b": dataset([0, 1], ANIMALS)})


def test_memory_without_datasets_says_how_to_give_them():
    with pytest.raises(DataError, match=r"finetune.run\(recipe, data=...\)"):
        load("memory")


def test_a_hub_dataset_that_cannot_be_reached_is_one_message():
    with pytest.raises(DataError, match="nobody/nothing: no such folder, and it cannot be loaded from the hub"):
        load("nobody/nothing")
