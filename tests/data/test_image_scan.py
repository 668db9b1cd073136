import os
import shutil
import struct
import zlib

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photographs import encoded, photograph
from PIL import Image

from finetune.data import image_scan, labeled_images
from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import EncodedImages, Split
from finetune.data.sources import tables
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.recipe import DataConfig


def split_of(images):
    return Split(images, np.zeros(len(images), np.int32))


def stats_of(images, cache=None):
    return scan_images(split_of(images), cache).stats


def giant_png():
    """A small file whose header promises 50,000 x 50,000 pixels."""

    def chunk(type_, data):
        return struct.pack(">I", len(data)) + type_ + data + struct.pack(">I", zlib.crc32(type_ + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BROKEN = {
    "truncated.jpg": (encoded(photograph(60, 40))[:-300], "cannot be used as an image"),
    "truncated.png": (encoded(photograph(60, 40), "PNG")[:-300], "cannot be used as an image"),
    "empty.jpg": (b"", "an empty file"),
    "text.jpg": (b"not an image at all", "not an image in a format that Pillow reads"),
    "bomb.png": (giant_png(), "too large to open safely"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_broken_image_is_reported_with_its_name_and_reason(tmp_path, name, as_bytes):
    data, reason = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    stats = stats_of([data if as_bytes else tmp_path / name])
    assert reason in stats.problem[0]
    assert ("image 0" if as_bytes else str(tmp_path / name)) in stats.problem[0]
    assert stats.broken.tolist() == [0]


def test_a_missing_file_and_pixels_of_unknown_range_are_reported(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    stats = stats_of([tmp_path / "none.png", tmp_path / "float.tiff"])
    assert "none.png: no such file" in stats.problem[0]
    assert "have no known range" in stats.problem[1]


def test_images_of_every_usable_mode_are_no_problem_and_sizes_follow_the_orientation(tmp_path):
    image, exif = photograph(60, 40), Image.Exif()
    exif[0x0112] = 6
    saved = {
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "palette.png": (image.convert("P"), {}),
        "alpha.png": (image.convert("RGBA"), {}),
        "16bit.png": (Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60)), {}),
        "animated.gif": (image, {"save_all": True, "append_images": [photograph(60, 40, 1)]}),
        "rotated.jpg": (image, {"exif": exif}),
    }
    for name, (picture, options) in saved.items():
        picture.save(tmp_path / name, **options)
    stats = stats_of([tmp_path / name for name in saved])
    assert stats.problem.tolist() == [""] * 6
    assert stats.mode.tolist() == ["CMYK", "P", "RGBA", "I;16", "P", "RGB"]
    assert list(zip(stats.width.tolist(), stats.height.tolist(), strict=True)) == [(60, 40)] * 5 + [(40, 60)]


@pytest.fixture
def files(tmp_path):
    for i in range(3):
        photograph(20, 16, i).save(tmp_path / f"{i}.png")
    return sorted(tmp_path.glob("*.png"))


def equal(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_a_second_scan_decodes_nothing(files, tmp_path, monkeypatch):
    first = stats_of(files, tmp_path / "cache")
    monkeypatch.setattr(image_scan, "open_with_mode", lambda *_: pytest.fail("decoded again"))
    assert equal(first, stats_of(files, tmp_path / "cache"))


@pytest.mark.parametrize("newer", ["pillow", "plugin"])
def test_an_image_that_could_not_be_read_is_looked_at_again_once_pillow_reads_more(files, tmp_path, monkeypatch, newer):
    read_png = image_scan.open_with_mode
    monkeypatch.setattr(image_scan, "open_with_mode", lambda _: read_png(b""))
    assert len(stats_of(files, tmp_path / "cache").broken) == 3
    monkeypatch.setattr(image_scan, "open_with_mode", read_png)
    assert len(stats_of(files, tmp_path / "cache").broken) == 3
    if newer == "pillow":
        monkeypatch.setattr(PIL, "__version__", "99.0")
    else:
        monkeypatch.setattr(image_scan, "readable_formats", lambda: ("PNG", "another"))
    assert len(stats_of(files, tmp_path / "cache").broken) == 0


def test_a_changed_file_is_scanned_again(files, tmp_path):
    stats_of(files, tmp_path / "cache")
    files[1].write_bytes(b"now broken")
    os.utime(files[1], (1, 1))
    assert stats_of(files, tmp_path / "cache").broken.tolist() == [1]


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_cache_is_rewritten(files, tmp_path, content):
    first = stats_of(files, tmp_path / "cache")
    (cached,) = (tmp_path / "cache" / "checks").iterdir()
    cached.write_bytes(cached.read_bytes()[:-100] if content is None else content)
    assert equal(first, stats_of(files, tmp_path / "cache"))
    assert equal(first, stats_of(files, tmp_path / "cache"))


def test_a_cache_that_cannot_be_written_to_is_not_an_error(files, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert not len(stats_of(files, tmp_path / "cache").broken)


def test_a_second_scan_of_a_parquet_file_decodes_nothing(tmp_path, monkeypatch):
    rows = {"image": [{"bytes": encoded(photograph(20, 16, i), "PNG"), "path": None} for i in range(3)]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")

    def images():
        loaded = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "datasets"))
        return EncodedImages(loaded.cast_column("image", datasets.Image(decode=False)), "image")

    first = stats_of(images(), tmp_path / "cache")
    monkeypatch.setattr(image_scan, "open_with_mode", lambda *_: pytest.fail("decoded again"))
    assert equal(first, stats_of(images(), tmp_path / "cache"))


@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_behind_a_table_that_is_broken_or_mended_since_is_seen(tmp_path, monkeypatch, as_text):
    """Also where size and modification time stay the same."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    paths = [f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        photograph(20, 16, i).save(tmp_path / path)
    images = paths if as_text else [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": images, "label": ["a", "b"] * 4}), tmp_path / "t.parquet")
    good = (tmp_path / "3.png").read_bytes()
    times = (tmp_path / "3.png").stat()

    def replace(content):
        (tmp_path / "3.png").write_bytes(content)
        os.utime(tmp_path / "3.png", ns=(times.st_atime_ns, times.st_mtime_ns))

    for content, broken in ((good, 0), (bytes(len(good)), 1), (good, 0)):
        replace(content)
        assert len(load(tmp_path / "t.parquet", on_broken_image="skip").skipped) == broken


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for c, name in enumerate(("ant", "bee")):
        for split, count in (("train", 6), ("test", 3)):
            (tmp_path / "data" / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                photograph(20, 16, 100 * c + 10 * count + i).save(tmp_path / "data" / split / name / f"{i}.png")
    return tmp_path / "data"


def load(folder, **options):
    return load_splits(DataConfig(source=str(folder), validation=0.0, **options), 0)


def test_broken_images_of_all_splits_are_listed_in_one_error(folder):
    (folder / "train" / "ant" / "0.png").write_bytes(b"not an image")
    (folder / "test" / "bee" / "1.png").write_bytes(b"")
    with pytest.raises(DataError) as raised:
        load(folder)
    first, second, advice = str(raised.value).splitlines()
    assert first.startswith("train: ")
    assert "ant/0.png: not an image" in first
    assert second.startswith("test: ")
    assert "bee/1.png: an empty file" in second
    assert "data.on_broken_image=skip" in advice


def test_a_long_list_of_broken_images_is_shortened(folder):
    for path in [*(folder / "train").rglob("*.png")]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"\n\.\.\. and 2 more\n"):
        load(folder)


def test_broken_images_can_be_skipped_and_are_reported(folder):
    (folder / "train" / "ant" / "0.png").write_bytes(b"not an image")
    (folder / "test" / "bee" / "1.png").write_bytes(b"")
    splits = load(folder, on_broken_image="skip")
    assert (len(splits.train), len(splits.test)) == (11, 5)
    assert [line.split(":")[0] for line in splits.skipped] == ["train", "test"]


def break_all(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"not an image")


def test_a_class_whose_training_images_are_all_broken_is_an_error_that_names_the_first(folder):
    break_all(folder / "train" / "bee")
    message = "all training images of bee are broken, the first: .*train/bee/0.png: not an image in a format"
    with pytest.raises(DataError, match=message):
        load(folder, on_broken_image="skip")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_whose_images_are_all_broken_is_an_error_that_names_it_and_the_first(folder, split):
    break_all(folder / split)
    count = len([*(folder / split).rglob("*.png")])
    message = f"the {split} split: its {count} images are all broken, the first: .*{split}/ant/0.png: not an image"
    with pytest.raises(DataError, match=message):
        load(folder, on_broken_image="skip")


def test_a_class_that_is_rare_without_its_broken_images_is_dropped_as_others_are(folder):
    shutil.rmtree(folder / "test")
    for name in ("train/cat", "train/dog"):
        (folder / name).mkdir()
        for i in range(2):
            photograph(20, 16, 200 + len(name) + i).save(folder / name / f"{i}.png")
    (folder / "train/cat/0.png").write_bytes(b"not an image")
    splits = load(folder, on_broken_image="skip", rare_classes="drop", test=0.5)
    assert splits.class_names == ("ant", "bee", "dog")
    assert {path.parent.name for split in splits.named().values() for path in split.images} == {"ant", "bee", "dog"}
    assert [len(split.stats.problem) for split in splits.named().values()] == [7, 7]
    assert splits.left_out == (f"{folder}/train/cat/1.png: of the rare class 'cat'",)
    assert len(splits.skipped) == 1
    assert any(line.endswith("dropped, as rare in training: cat") for line in splits.notes)


def test_a_split_of_which_dropped_classes_leave_nothing_is_named(folder):
    break_all(folder / "train" / "bee")
    (folder / "train" / "cat").mkdir()
    photograph(20, 16, 300).save(folder / "train" / "cat" / "0.png")
    shutil.rmtree(folder / "test" / "ant")
    with pytest.raises(DataError, match="rare_classes=drop: leaves no images in the test split"):
        load(folder, on_broken_image="skip", rare_classes="drop")


# What is cached follows the files, and --verify trusts none of it.


def replace_in_place(path, content):
    """Other bytes of the same number in the same file, and its times of access and modification as before."""
    times = path.stat()
    assert len(content) == times.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def without_ctime(monkeypatch):
    """File systems whose files have no time of change that could not be set."""

    def state(path):
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"

    for module in (image_scan, labeled_images, tables):
        monkeypatch.setattr(module, "file_state", state)


def other_pixels(path):
    """The file of another image, of the same size in bytes: a bitmap has no compression."""
    return path.read_bytes()[:-30] + bytes(30)


@pytest.fixture
def bitmaps(folder):
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    return folder


def test_a_change_that_keeps_size_and_time_is_seen(bitmaps):
    before = load(bitmaps).sha256
    path = bitmaps / "train" / "ant" / "3.bmp"
    replace_in_place(path, other_pixels(path))
    assert load(bitmaps).sha256 != before


def test_to_verify_trusts_no_time(bitmaps, without_ctime):
    before = load(bitmaps).sha256
    path = bitmaps / "train" / "ant" / "3.bmp"
    replace_in_place(path, other_pixels(path))
    assert load(bitmaps).sha256 == before
    verified = load_splits(DataConfig(source=str(bitmaps), validation=0.0), 0, verify=True).sha256
    assert verified != before
    assert load(bitmaps).sha256 == verified  # what was read anew is cached


def test_another_file_under_the_same_name_size_and_time_is_seen(bitmaps, without_ctime):
    before = load(bitmaps).sha256
    path = bitmaps / "train" / "ant" / "3.bmp"
    times, content = path.stat(), other_pixels(path)
    (bitmaps.parent / "fresh").write_bytes(content)
    (bitmaps.parent / "fresh").replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load(bitmaps).sha256 != before


def test_the_identity_is_of_files_and_not_of_pixels_alone(bitmaps):
    before = load(bitmaps)
    path = bitmaps / "train" / "ant" / "3.bmp"
    path.write_bytes(path.read_bytes() + b"\0")
    after = load(bitmaps)
    assert before.train.stats.pixel_hash.tolist() == after.train.stats.pixel_hash.tolist()
    assert before.sha256 != after.sha256


def rows_of_bitmaps():
    def bitmap(i):
        return {"bytes": encoded(photograph(20, 16, i), "BMP"), "path": None}

    return {"image": [bitmap(i) for i in range(12)], "label": ["ant", "bee"] * 6}


def uncompressed(path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = datasets.Dataset.from_dict(rows_of_bitmaps(), features=features).data.table
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    return path


def changed_bitmap(content):
    """One byte in the pixels of the first bitmap is another."""
    at = content.index(b"BM") + 500
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("verify", [False, True])
def test_a_parquet_file_that_changed_in_place_is_read_again(tmp_path, monkeypatch, verify, request):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    if verify:
        request.getfixturevalue("without_ctime")
    path = uncompressed(tmp_path / "t.parquet")
    before = load(path).sha256
    replace_in_place(path, changed_bitmap(path.read_bytes()))
    if verify:
        assert load(path).sha256 == before
    after = load_splits(DataConfig(source=str(path), validation=0.0), 0, verify=verify)
    assert after.sha256 != before


@pytest.mark.slow
def test_a_saved_dataset_that_changed_in_place_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(rows_of_bitmaps(), features=features).save_to_disk(tmp_path / "saved")
    before = load(tmp_path / "saved").sha256
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    replace_in_place(arrow, changed_bitmap(arrow.read_bytes()))
    assert load(tmp_path / "saved").sha256 != before


@pytest.mark.slow
def test_arrays_and_datasets_in_memory_are_known_by_their_content(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    labels = np.arange(20) % 2

    def npz():
        np.savez(tmp_path / "a.npz", images=images, labels=labels)
        os.utime(tmp_path / "a.npz", (1, 1))
        return load(tmp_path / "a.npz").sha256

    def memory():
        rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int32")})
        data = datasets.Dataset.from_dict(rows, features=features)
        return load_splits(DataConfig(source="memory", validation=0.0), 0, data).sha256

    for sha256 in (npz, memory):
        before = sha256()
        assert sha256() == before
        images[3, 2, 1] ^= 1
        assert sha256() != before
        images[3, 2, 1] ^= 1
