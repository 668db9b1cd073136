"""Folders as people have them: what is a split, what a class, and what neither."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from finetune.data.sources import read_source
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.recipe import DataConfig


def write(folder, count=2, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i:02}.png")


def read(folder):
    return read_source(DataConfig(source=str(folder)))


def classes(root, *names):
    for name in names:
        write(root / name)


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("training_set", "test_set", "test"),
        ("seg_train", "seg_test", "test"),
        ("train_images", "val_images", "validation"),
        ("Training", "Testing", "test"),
        ("trainset", "testset", "test"),
        ("cars_train", "cars_test", "test"),
        ("trainImages", "devImages", "validation"),
        ("train2017", "val2017", "validation"),
    ],
)
def test_folders_named_for_splits_in_the_wild_are_splits(tmp_path, train, other, split):
    for name in (train, other):
        classes(tmp_path / name, "cats", "dogs")
    sources = read(tmp_path)
    assert list(sources) == ["train", split]
    assert all(source.names == ("cats", "dogs") for source in sources.values())


def test_a_class_may_be_called_like_a_split(tmp_path):
    classes(tmp_path, "bus", "train", "car")
    assert read(tmp_path)["train"].names == ("bus", "car", "train")
    for part in ("train", "test"):
        classes(tmp_path / "splits" / part, "bus", "train")
    assert read(tmp_path / "splits")["test"].names == ("bus", "train")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "test"], "train/ look like splits, but have no folders for classes inside"),
        (["train/2020", "train/2021", "bus", "car"], "train/ could be a split or a class beside bus/, car/"),
        (["val/a", "val/b", "test/a", "test/b"], "but none to train on"),
        (["train/a", "train/b", "training_set/a", "training_set/b"], "two folders for one split"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_both(tmp_path, folders, message):
    classes(tmp_path, *folders)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("around", [(), ("archive",), ("archive", "v1")])
def test_folders_that_hold_nothing_else_are_passed_through(tmp_path, around):
    root = tmp_path.joinpath(*around)
    for part in ("seg_train", "seg_test"):
        classes(root / part / part, "forest", "sea")
    sources = read(tmp_path)
    assert [source.names for source in sources.values()] == [("forest", "sea")] * 2
    (root / "README.md").write_text("about")
    assert [line.rsplit("/", 1)[1] for line in read(tmp_path)["train"].left_out] == ["README.md: not an image"]
    for folder in ("seg_train", "seg_test"):
        shutil.rmtree(root / folder)
    classes(root, "forest", "sea")
    assert read(tmp_path)["train"].names == ("forest", "sea")


@pytest.mark.parametrize("inside", [(), ("train.zip",)], ids=["empty", "zip"])
def test_a_training_split_without_images_is_not_passed_by_for_another(tmp_path, inside):
    classes(tmp_path / "test", "cat", "dog")
    (tmp_path / "train").mkdir()
    for name in inside:
        (tmp_path / "train" / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=r"has folders for splits \(test/\), but none to train on"):
        read(tmp_path)


def test_an_empty_class_is_not_passed_by_for_folders_inside_another(tmp_path):
    classes(tmp_path / "cat", "siam", "pers")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="a folder with images for each of at least two classes; has cat/"):
        read(tmp_path)


def test_a_test_split_without_images_is_missing_which_is_said(tmp_path):
    classes(tmp_path / "train", "cat", "dog")
    (tmp_path / "test").mkdir()
    sources = read(tmp_path)
    assert (list(sources), sources["train"].names) == (["train"], ("cat", "dog"))
    assert sources["train"].notes == (f"{tmp_path}/test: no images inside, so no split",)


def test_a_folder_of_other_files_beside_the_data_is_passed_by_and_its_files_are_listed(tmp_path):
    classes(tmp_path / "images", "cat", "dog")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "00.xml").write_text("<annotation/>")
    source = read(tmp_path)["train"]
    assert source.names == ("cat", "dog")
    assert source.left_out == (f"{tmp_path}/annotations/00.xml: not an image",)


def test_a_stray_image_beside_the_classes_of_a_split_is_listed(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / part / name, 6)
    write(tmp_path / "train", 1, start=9)
    sources = read(tmp_path)
    assert list(sources) == ["train", "test"]
    assert sources["train"].left_out == (f"{tmp_path}/train/09.png: beside the class folders, in none of them",)


def test_a_split_may_have_one_class_alone(tmp_path):
    classes(tmp_path / "train", "a", "b")
    classes(tmp_path / "val", "b")
    assert read(tmp_path)["validation"].names == ("b",)


def test_hidden_and_system_files_are_left_out_at_any_depth_and_listed(tmp_path):
    classes(tmp_path, "cat", "dog")
    write(tmp_path / "cat" / ".ipynb_checkpoints")
    write(tmp_path / "cat" / "deep" / "__MACOSX")
    for name in ("._00.png", ".DS_Store", "Thumbs.db", "deep/._x.jpg"):
        (tmp_path / "dog" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "dog" / name).write_bytes(b"\0\5\26\7")
    source = read(tmp_path)["train"]
    assert len(source.images) == 4
    assert sorted(line.removeprefix(f"{tmp_path}/") for line in source.left_out) == [
        "cat/.ipynb_checkpoints: a hidden folder with 2 files",
        "cat/deep/__MACOSX: a hidden folder with 2 files",
        "dog/.DS_Store: a hidden file",
        "dog/._00.png: a hidden file",
        "dog/Thumbs.db: a hidden file",
        "dog/deep/._x.jpg: a hidden file",
    ]


@pytest.mark.parametrize(
    ("ending", "form"),
    [
        (".jfif", "JPEG"),
        (".jpe", "JPEG"),
        (".avif", "AVIF"),
        (".ppm", "PPM"),
        (".tga", "TGA"),
        ("", "PNG"),
        (".data", "JPEG"),
        (".txt", "WEBP"),
    ],
)
def test_every_image_that_pillow_reads_is_used_whatever_its_name(tmp_path, ending, form):
    classes(tmp_path, "cat", "dog")
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / f"more{ending}", format=form)
    splits = load_splits(DataConfig(source=str(tmp_path), validation=0.0, test=0.4), 0)
    assert len(splits.train) + len(splits.test) == 5


def test_every_other_file_is_listed_with_its_reason(tmp_path):
    classes(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "labels.csv").write_text("a,b")
    write(tmp_path, 1, start=7)
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    (tmp_path / "dog" / "lost").symlink_to("nowhere")
    assert sorted(line.removeprefix(f"{tmp_path}/") for line in read(tmp_path)["train"].left_out) == [
        "07.png: beside the class folders, in none of them",
        "cat/notes.txt: not an image",
        "dog/lost: a link to nothing",
        "dog/pipe.png: not a regular file",
        "labels.csv: not an image",
    ]


def test_what_is_beside_the_splits_is_listed(tmp_path):
    for part in ("train", "test"):
        classes(tmp_path / part, "a", "b")
    write(tmp_path / "docs", 1)
    (tmp_path / "README.md").write_text("about")
    assert sorted(line.removeprefix(f"{tmp_path}/") for line in read(tmp_path)["train"].left_out) == [
        "README.md: not an image",
        "docs/00.png: in none of the splits",
    ]


def test_links_are_followed_once_and_never_in_a_circle(tmp_path):
    write(tmp_path / "store" / "shared", 3)
    root = tmp_path / "data"
    classes(root, "cat", "dog")
    (root / "cat" / "more").symlink_to(tmp_path / "store" / "shared")
    (root / "cat" / "again").symlink_to(tmp_path / "store" / "shared")
    (root / "dog" / "round").symlink_to(root)
    (root / "dog" / "one.png").symlink_to(tmp_path / "store" / "shared" / "00.png")
    source = read(root)["train"]
    assert [source.labels.tolist().count(i) for i in (0, 1)] == [5, 3]
    assert sorted(line.rsplit("/", 1)[1] for line in source.left_out) == [
        "more: a link to a folder that is read already",
        "round: a link to a folder that is read already",
    ]


@pytest.mark.parametrize("link", ["acat", "zcat"])
def test_a_link_to_a_class_beside_it_is_no_class_of_its_own(tmp_path, link):
    classes(tmp_path, "cat", "dog")
    (tmp_path / link).symlink_to("cat")
    source = read(tmp_path)["train"]
    assert source.names == ("cat", "dog")
    assert source.left_out == (f"{tmp_path / link}: a link to a folder that is read already",)


def test_a_link_to_what_is_around_the_source_does_not_read_the_source_again(tmp_path):
    root = tmp_path / "data"
    classes(root, "cat", "dog")
    write(tmp_path / "more")
    (root / "dog" / "around").symlink_to(tmp_path)
    source = read(root)["train"]
    assert source.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert source.left_out == (f"{root}/dog/around/data: a folder that is read already",)


def test_classes_that_are_links_are_in_the_order_of_names(tmp_path):
    classes(tmp_path / "store", "1", "2")
    classes(tmp_path / "data", "cat", "eel")
    for name, target in (("bee", "1"), ("dog", "2")):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store" / target)
    source = read(tmp_path / "data")["train"]
    assert source.names == ("bee", "cat", "dog", "eel")
    assert [path.parent.name for path in source.images[::2]] == ["bee", "cat", "dog", "eel"]


def test_a_link_to_itself_is_listed(tmp_path):
    classes(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "self").symlink_to("self")
    (tmp_path / "cat" / "self.png").symlink_to("self.png")
    source = read(tmp_path)["train"]
    assert source.left_out == (f"{tmp_path}/cat/self: a link to nothing",)
    assert tmp_path / "cat" / "self.png" in source.images  # named as broken when it is read


@pytest.mark.parametrize("name", ["eel", "dog/locked"])
def test_a_folder_that_cannot_be_read_is_an_error_that_names_it(tmp_path, monkeypatch, name):
    classes(tmp_path, "cat", "dog", name)
    scandir = os.scandir

    def refuse(path):
        if Path(path) == tmp_path / name:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"{name}: a folder that cannot be read: Permission denied; make it readable"):
        read(tmp_path)


def test_images_in_a_folder_that_may_be_listed_and_not_entered_are_broken(tmp_path, monkeypatch):
    classes(tmp_path, "cat", "dog")
    is_dir = Path.is_dir

    def refuse(path, **options):
        if path.parent == tmp_path / "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path, **options)

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert [path.parent.name for path in read(tmp_path)["train"].images] == ["cat", "cat", "dog", "dog"]


def test_names_are_compared_in_unicodes_composed_form(tmp_path):
    composed = unicodedata.normalize("NFC", "été")
    write(tmp_path / "train" / composed)
    write(tmp_path / "train" / "hiver")
    write(tmp_path / "test" / unicodedata.normalize("NFD", "été"))
    write(tmp_path / "test" / "hiver")
    sources = read(tmp_path)
    assert sources["train"].names == sources["test"].names == ("hiver", composed)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([unicodedata.normalize(form, "été") for form in ("NFC", "NFD")], [r"'\xe9t\xe9'", r"'e\u0301te\u0301'"]),
        (["cat", "cat "], ["'cat'", "'cat '"]),
    ],
    ids=["Unicode forms", "spaces"],
)
def test_two_folders_with_one_name_are_refused_and_both_are_shown(tmp_path, names, shown):
    for name in (*names, "hiver"):
        write(tmp_path / name)
    with pytest.raises(DataError, match="are one name") as raised:
        read(tmp_path)
    assert all(name in str(raised.value) for name in shown)


def test_names_that_are_no_utf8_are_read_and_written(tmp_path):
    try:
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn"))
        write(folder)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 alone")
    classes(tmp_path, "rot")
    (folder / os.fsdecode(b"b\xe4d.png")).write_bytes(b"no image")
    splits = load_splits(DataConfig(source=str(tmp_path), validation=0.0, test=0.5, on_broken_image="skip"), 0)
    assert splits.class_names == ("grün", "rot")
    assert len(splits.skipped) == 1


def test_links_in_a_circle_and_folders_without_end_are_passed_over(tmp_path):
    classes(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "cat" / "itself").symlink_to("itself")
    deep = tmp_path / "dog"
    for _ in range(150):
        deep = deep / "d"
    write(deep)
    source = read(tmp_path)["train"]
    assert len(source.images) == 4
    lines = [line.removeprefix(f"{tmp_path}/") for line in source.left_out]
    assert "cat/itself: a link to nothing" in lines
    assert "cat/up: a link to a folder that is read already" in lines
    assert any(line.endswith(": more than 100 folders deep") for line in lines)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "tab\there"], ids=ascii)
def test_a_class_that_a_terminal_would_obey_is_refused(tmp_path, name):
    write(tmp_path / name)
    write(tmp_path / "cat")
    with pytest.raises(DataError, match="has the character"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.npz"])
def test_a_source_that_is_a_pipe_is_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="neither a file nor a folder, but a pipe"):
        read(tmp_path / name)


def test_a_pipe_among_the_tables_of_a_folder_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="train.parquet: cannot be read as Parquet: .*a pipe"):
        read(tmp_path)


def test_a_home_folder_of_nobody_is_a_missing_folder():
    with pytest.raises(DataError, match="~nobody-here/photos: no such file or folder"):
        read_source(DataConfig(source="~nobody-here/photos"))


def test_a_folder_called_digits_is_told_where_the_bundled_digits_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_source(DataConfig(source="digits"))["train"].notes == ()
    (tmp_path / "digits").mkdir()
    (note,) = read_source(DataConfig(source="digits"))["train"].notes
    assert "./digits" in note
