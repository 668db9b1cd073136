"""The data doctor on a folder of digits in which every kind of mistake was made on purpose."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from photographs import photograph
from PIL import Image
from sklearn.datasets import load_digits

import finetune
from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split
from finetune.data.splits import Splits, load_splits
from finetune.errors import CheckpointError, DataError, RecipeError
from finetune.recipe import DataConfig
from finetune.report.corrected_labels import overrides_to_read, suggested_labels
from finetune.report.findings import Evidence, class_overlap, conflicting_duplicates, probe_accuracy, small_classes

RECIPE = """\
backbone: {source: "builtin:tiny-clip"}
data: {source: digits, validation: 0}
stages: [{type: linear_probe}]
"""
LENET = (
    "backbone.module=finetune.models.lenet:LeNet",
    "backbone.kwargs={num_classes: 3}",
    "backbone.image={size: 28, channels: 1}",
)
NAMES = ("zero", "one", "two", "rare")
FLIPPED = {"zero/07.png": "one", "zero/11.png": "two", "one/05.png": "zero", "two/20.png": "zero"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with ``digits/``, what the doctor said of it, ``page/`` and ``corrected.csv``."""
    root = tmp_path_factory.mktemp("doctor")
    write_digits(root / "digits")
    for image, label in FLIPPED.items():
        (root / "digits/train" / image).rename(root / "digits/train" / label / f"from-{image.replace('/', '-')}")
    train = root / "digits/train"
    shutil.copy(train / "one/00.png", train / "two/copy.png")
    shutil.copy(train / "one/00.png", train / "one/copy.png")
    brighter = np.asarray(Image.open(train / "zero/01.png")) + np.uint8(1)
    Image.fromarray(brighter).save(train / "two/near.png")
    shutil.copy(train / "two/03.png", root / "digits/test/two/leak.png")
    photograph(8, 8, 3).save(train / "one/odd.png")
    result = finetune.diagnose_data(recipe_of(root), output=root / "page", write=root / "corrected.csv", quiet=True)
    return root, result


def write_digits(folder):
    digits = load_digits()
    for label, name in enumerate(NAMES):
        images = np.uint8(digits.images[digits.target == label] * 254 / 16)
        counts = {"train": 2, "test": 1} if name == "rare" else {"train": 30, "test": 12}
        for split, count in counts.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(images[i if split == "train" else -1 - i]).save(folder / split / name / f"{i:02}.png")


def recipe_of(root, *overrides):
    recipe = root / "digits.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return finetune.load_recipe(recipe, overrides)


def ends(images):
    """The last two parts of the paths."""
    return ["/".join(image["image"].replace("\\", "/").split("/")[-2:]) for image in images]


def test_images_in_the_wrong_folder_are_named_first_with_their_class(place):
    errors = place[1]["label_errors"]["images"]
    expected = {f"{label}/from-{image.replace('/', '-')}": image.split("/")[0] for image, label in FLIPPED.items()}
    first = dict(zip(ends(errors), [error["suggested"] for error in errors], strict=True))
    assert expected.items() <= first.items()
    assert set(ends(errors[:8])) >= set(expected)
    assert [error["score"] for error in errors] == sorted(error["score"] for error in errors)


def test_copies_and_near_duplicates_with_different_labels_are_groups(place):
    copies, near = place[1]["conflicts"]
    assert copies["exact"]
    assert sorted(ends(copies["images"])) == ["one/00.png", "one/copy.png", "two/copy.png"]
    assert copies["suggested"] == "one"  # two of three
    assert not near["exact"]
    assert sorted(ends(near["images"])) == ["two/near.png", "zero/01.png"]


def test_a_photograph_among_digits_is_the_first_outlier(place):
    outliers = place[1]["outliers"]
    assert ends(outliers["images"])[0] == "one/odd.png"
    assert all(image["distance"] > outliers["threshold"] for image in outliers["images"])


def test_an_image_of_two_splits_is_leakage(place):
    leaks = place[1]["leakage"]
    assert (leaks["exact"], leaks["near"]) == (1, 0)
    assert ends(leaks["pairs"][0]["images"]) == ["two/leak.png", "two/03.png"]
    assert [image["split"] for image in leaks["pairs"][0]["images"]] == ["test", "train"]


def test_a_class_with_few_images_is_told_with_its_numbers(place):
    rare = place[1]["small_classes"][0]
    assert rare["class"] == "rare"
    assert rare["images"] == {"train": 2, "test": 1}
    assert rare["problems"][0] == "few to learn from: 2 training images"
    assert "1 test image: were all of them right, its accuracy would be known to be above 0.21 only" in rare["problems"]


def test_the_page_loads_nothing_and_describes_every_picture(place):
    page = (place[0] / "page" / "doctor.html").read_text(encoding="utf-8")
    pictures = re.findall(r"<img [^>]+>", page)
    assert len(pictures) > 8
    assert all(re.search(r'alt="labelled \w+', picture) for picture in pictures)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert 'alt="labelled one, perhaps zero"' in page
    assert json.loads((place[0] / "page" / "doctor.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(place[1])
    )


def test_the_corrected_table_gives_clear_suggestions_and_leaves_the_rest(place):
    root, result = place
    rows = {row["image"].replace("\\", "/"): row for row in csv.DictReader((root / "corrected.csv").open(newline=""))}
    assert len(rows) == sum(result["splits"].values())
    copy = rows["digits/train/two/copy.png"]
    assert (copy["given"], copy["label"], copy["reason"]) == ("two", "one", "copy with another label")
    near = rows["digits/train/two/near.png"]
    assert (near["given"], near["suggested"], near["reason"]) == ("two", "zero", "near duplicate with another label")
    clear = {error["image"] for error in result["label_errors"]["images"] if error["clear"]}
    changed = [row for row in rows.values() if row["label"] != row["given"]]
    assert {str(root / row["image"]) for row in changed if row["reason"] == "label error"} <= clear
    untouched = rows["digits/test/one/00.png"]
    assert (untouched["label"], untouched["suggested"], untouched["reason"], untouched["score"]) == ("one", "", "", "")


def test_copies_get_one_label_and_near_duplicates_keep_theirs_unless_the_probe_is_clear():
    def image(id, label):
        return {"id": id, "label": label}

    def error(id, clear):
        return {**image(id, "a"), "suggested": "b", "probability": 0.9, "clear": clear}

    conflicts = [
        {"exact": True, "suggested": "b", "images": [image(0, "a"), image(1, "b")]},
        {"exact": False, "suggested": "b", "images": [image(2, "a"), image(3, "a"), image(4, "a"), image(5, "b")]},
    ]
    errors = [error(2, True), error(3, False), error(6, True), error(7, False)]
    assert suggested_labels({"label_errors": {"images": errors}, "conflicts": conflicts}) == {
        0: ("b", "b", "copy with another label", ""),
        2: ("b", "b", "near duplicate with another label", ""),
        3: ("a", "b", "near duplicate with another label", ""),
        4: ("a", "b", "near duplicate with another label", ""),
        6: ("b", "b", "label error", "0.9000"),
        7: ("a", "b", "label error", "0.9000"),
    }


def test_a_recipe_reads_the_corrected_table_with_the_splits_that_were_looked_at(place):
    root, result = place
    recipe = recipe_of(root, *overrides_to_read(root / "corrected.csv", recipe_of(root).data))
    splits = load_splits(recipe.data, 0)
    assert {name: len(split) for name, split in splits.named().items()} == result["splits"]
    labels = {splits.train.name(i): splits.class_names[label] for i, label in enumerate(splits.train.labels)}
    assert labels[str(root / "digits/train/two/copy.png")] == "one"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"fraction": 0.5, "validation": 0.2, "test": 0.3}, ["validation=0", "fraction=1", "test=0.2"]),
        ({"shots_per_class": 4}, ["validation=0", "shots_per_class=null"]),
        ({"subset": "small", "revision": "main"}, ["subset=null", "revision=null"]),
    ],
)
def test_options_that_made_the_splits_are_taken_back_for_the_table(tmp_path, options, expected):
    data = DataConfig(source="a/b", **options)
    assert overrides_to_read(tmp_path / "t.csv", data)[4:] == [f"data.{option}" for option in expected]


@pytest.mark.slow
def test_images_in_memory_are_written_beside_the_table_with_the_same_pixels(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (2, 24, 9, 7, 3), np.uint8)[0], np.arange(24) % 2
    np.savez(tmp_path / "noise.npz", images=images, labels=labels)
    recipe = recipe_of(tmp_path, f"data.source={tmp_path / 'noise.npz'}")
    table = tmp_path / "new" / "table.csv"
    finetune.diagnose_data(recipe, write=table, quiet=True)
    read = recipe_of(tmp_path, *overrides_to_read(table, recipe.data))
    before, after = load_splits(recipe.data, 0), load_splits(read.data, 0)
    np.testing.assert_array_equal(after.train.stats.pixel_hash, before.train.stats.pixel_hash)
    with pytest.raises(RecipeError, match=r"table.csv: exists already"):
        finetune.diagnose_data(recipe, write=table, quiet=True)


def test_where_every_class_has_one_image_and_its_copies_the_page_says_what_could_not_be_looked_for(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    np.savez(tmp_path / "few.npz", x_train=images, y_train=np.arange(3), x_test=images, y_test=np.arange(3))
    recipe = recipe_of(tmp_path, f"data.source={tmp_path / 'few.npz'}", "~backbone.source", *LENET)
    result = finetune.diagnose_data(recipe, output=tmp_path / "page", quiet=True)
    assert result["probe"] is None
    assert result["leakage"]["exact"] == 3
    assert any("every class has a single image" in note for note in result["notes"])
    assert any("weights are random" in note for note in result["notes"])
    assert (tmp_path / "page" / "doctor.html").read_text(encoding="utf-8").count("None were looked for") == 2


def test_broken_images_that_are_left_out_are_told(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "a" / "broken.png").write_bytes(b"no")
    overrides = [f"data.source={tmp_path / 'photos'}", "data.on_broken_image=skip", "~backbone.source", *LENET]
    notes = finetune.diagnose_data(recipe_of(tmp_path, *overrides), quiet=True)["notes"]
    assert any("1 broken images are left out, the first: " in note and "broken.png" in note for note in notes)


def test_what_cannot_be_written_is_told_before_any_work(tmp_path):
    recipe = recipe_of(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "kept_images").mkdir()
    with pytest.raises(CheckpointError, match="a file has that name"):
        finetune.diagnose_data(recipe, output=tmp_path / "file" / "page")
    with pytest.raises(RecipeError, match=r"give it that ending"):
        finetune.diagnose_data(recipe, write=tmp_path / "labels.txt")
    with pytest.raises(RecipeError, match=r"kept_images: exists already"):
        finetune.diagnose_data(recipe, write=tmp_path / "kept.csv")


def evidence_of(labels, probabilities, names=("ant", "bee", "cat")):
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    images[1] = images[0]
    train = scan_images(Split(images, np.asarray(labels)))
    splits = Splits(train, None, train.take(np.arange(1)), names)
    return Evidence(splits, np.array([0, 0, *range(1, len(labels) - 1), 0]), np.zeros(len(labels) + 1), probabilities)


def test_overlap_counts_both_directions_of_a_pair_and_accuracy_leaves_out_what_is_not_judged():
    p = np.array([[0.6, 0.4, 0], [0.3, 0.7, 0], [0.6, 0.4, 0], [0, 0.4, 0.6], [np.nan] * 3, [0.5, 0.1, 0.4]])
    evidence = evidence_of(np.int32([0, 0, 1, 1, 2]), p)  # the last is the first image again, as a test image
    first, second = class_overlap(evidence)
    assert (first["classes"], first["first_as_second"], first["share"]) == (["bee", "cat"], 1, 1 / 2)
    assert second["classes"] == ["ant", "bee"]
    assert (second["first_as_second"], second["second_as_first"], second["images"]) == (1, 1, 5)
    assert second["share"] == pytest.approx(2 / 5)
    accuracy = probe_accuracy(evidence)
    assert (accuracy["images"], accuracy["accuracy"], accuracy["most_frequent_class"]) == (5, 2 / 5, 3 / 5)


def test_images_with_several_labels_have_conflicts_without_a_suggestion():
    evidence = evidence_of(np.float32([[1, 0, 1], [1, 0, 0], [0, 1, 0]]), None)
    conflict = conflicting_duplicates(evidence)[0]
    assert [image["label"] for image in conflict["images"]] == ["ant, cat", "ant", "ant, cat"]
    assert conflict["suggested"] is None
    assert class_overlap(evidence) == []
    assert probe_accuracy(evidence) is None


def test_a_table_of_images_with_several_labels_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "many.npz", images=rng.integers(0, 256, (20, 8, 8), np.uint8), labels=rng.integers(0, 2, (20, 3))
    )
    recipe = recipe_of(tmp_path, f"data.source={tmp_path / 'many.npz'}")
    with pytest.raises(DataError, match="--write: the images have several labels each"):
        finetune.diagnose_data(recipe, write=tmp_path / "table.csv", quiet=True)


def test_a_class_of_35_test_images_can_be_shown_to_be_above_nine_tenths():
    def classes(test):
        stats = np.zeros((10, 2, 2), np.uint8)
        return Splits(Split(stats, np.zeros(10, int)), None, Split(np.zeros((test, 2, 2)), np.zeros(test, int)), ("a",))

    assert small_classes(classes(35)) == []
    assert small_classes(classes(34))[0]["problems"][0].startswith("34 test images: were all of them right")
