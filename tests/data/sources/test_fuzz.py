"""Random folders and tables: every image is used or named, and nothing but our own errors is raised."""

import string
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.data.sources import read_source
from finetune.data.splits import load_splits
from finetune.errors import FinetuneError
from finetune.recipe import DataConfig

pytestmark = pytest.mark.slow
MANY = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

WORDS = [
    "train",
    "test",
    "val",
    "Training_set",
    "cat",
    "dog",
    "Cat",
    "é",
    "e\u0301",
    "a b",
    ".hidden",
    "__MACOSX",
    "x1",
]
FILES = ["0.png", "1.JPG", "2", "._0.png", "Thumbs.db", "notes.txt", "t.csv", "3.gif", "ü.png", "4.webp", ".x.png"]
CONTENTS = ["image", "text", "empty", "truncated"]

tree = st.dictionaries(
    st.lists(st.sampled_from(WORDS), max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(FILES), st.sampled_from(CONTENTS), max_size=5),
    max_size=8,
)


def encoded(shade, form="PNG"):
    with tempfile.SpooledTemporaryFile() as file:
        Image.new("RGB", (6, 5), (shade, 0, 0)).save(file, form)
        file.seek(0)
        return file.read()


IMAGE = encoded(9)
BYTES = {"image": IMAGE, "text": b"some text", "empty": b"", "truncated": IMAGE[: len(IMAGE) // 2]}


def write(root, folders):
    """Writes a tree; gives the paths of its whole images."""
    images = []
    for parts, files in folders.items():
        folder = root.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        for name, kind in files.items():
            if not (folder / name).exists():
                (folder / name).write_bytes(BYTES[kind])
                images += [folder / name] if kind == "image" else []
    return images


def is_named(path, lines):
    """In a line of its own, or in that of a hidden folder around it."""
    return any(line.startswith((f"{path}: ", *(f"{parent}: " for parent in path.parents))) for line in lines)


@MANY
@given(tree)
def test_every_image_in_a_random_folder_is_used_or_named(folders):
    with tempfile.TemporaryDirectory() as name:
        images = write(Path(name), folders)
        try:
            sources = read_source(DataConfig(source=name))
        except FinetuneError:
            return
        used = {path for source in sources.values() for path in source.images}
        lines = [line for source in sources.values() for line in source.left_out]
        assert not [path for path in images if path not in used and not is_named(path, lines)]
        assert all(path.is_file() for path in used)


@MANY
@given(
    tree, st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from(["keep", "drop", "error"])
)
def test_random_folders_become_splits_or_an_error_of_ours(folders, validation, test, rare):
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), folders)
        options = {"validation": validation, "test": test, "rare_classes": rare, "on_broken_image": "skip"}
        try:
            splits = load_splits(DataConfig(source=name, **options), 0)
        except FinetuneError:
            return
        paths = [path for split in splits.named().values() for path in split.images]
        assert len(set(paths)) == len(paths)
        assert all(len(split) for split in splits.named().values())
        assert all(
            0 <= split.labels.min() <= split.labels.max() < len(splits.class_names) for split in splits.named().values()
        )


field = st.one_of(
    st.sampled_from(
        ["a.png", "b.png", "img\\a.png", "missing.png", "cat", "dog", " cat", "1", "1.0", "0.5", "train", "test", ""]
    ),
    st.text(st.sampled_from(string.printable + "é\u0301猫"), max_size=8),
)
rows = st.lists(st.lists(field, min_size=1, max_size=4), max_size=8)


@MANY
@given(
    st.lists(st.sampled_from(["file", "label", "split", "", "score", "a.png"]), min_size=1, max_size=4),
    rows,
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
)
def test_random_tables_become_splits_or_an_error_of_ours(header, rows, separator, encoding):
    with tempfile.TemporaryDirectory() as name:
        for image in ("a.png", "b.png", "img/a.png"):
            (Path(name) / image).parent.mkdir(exist_ok=True)
            (Path(name) / image).write_bytes(IMAGE)
        text = "\n".join(separator.join(row) for row in [header, *rows])
        (Path(name) / "t.csv").write_bytes(text.encode(encoding, "replace"))
        try:
            sources = read_source(DataConfig(source=str(Path(name) / "t.csv")))
        except FinetuneError:
            return
        assert sum(len(source.images) for source in sources.values()) <= len(rows) + 1
        for source in sources.values():
            assert len(source.images) == len(source.labels)
            assert all(name == name.strip() for name in source.names)


@MANY
@given(
    st.dictionaries(
        st.sampled_from(
            ["x_train", "y_train", "images", "labels", "train_images", "train_labels", "test_images", "extra"]
        ),
        st.tuples(
            st.sampled_from(["u1", "i8", "f4", "U3", "b1"]),
            st.lists(st.integers(0, 4), min_size=0, max_size=4).map(tuple),
        ),
        max_size=4,
    )
)
def test_random_arrays_become_splits_or_an_error_of_ours(arrays):
    with tempfile.TemporaryDirectory() as name:
        np.savez(Path(name) / "a.npz", **{key: np.zeros(shape, dtype) for key, (dtype, shape) in arrays.items()})
        try:
            splits = load_splits(DataConfig(source=str(Path(name) / "a.npz")), 0)
        except FinetuneError:
            return
        assert len(splits.train)
