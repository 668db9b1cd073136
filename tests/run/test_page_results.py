import numpy as np
import pytest
from PIL import Image

from finetune.data.labeled_images import Split
from finetune.data.splits import Splits
from finetune.folder.run_folder import RunFolder
from finetune.run import page_results


def splits_of(labels, names, images=None):
    images = np.zeros((len(labels), 9, 9), np.uint8) if images is None else images
    split = Split(images, np.asarray(labels))
    return Splits(split, None, split, tuple(names))


def test_the_worst_class_comes_first_and_one_without_images_last():
    logits = np.eye(4)[[0, 0, 1, 0]]
    records = page_results.describe_classes(logits, splits_of([0, 0, 1, 1], "abcd"))
    assert [record["name"] for record in records] == ["b", "a", "c", "d"]
    assert records[0]["trained"] == 2


def test_of_very_many_classes_the_matrix_has_those_with_the_most_mistakes(tmp_path):
    labels, answers = np.arange(130), np.arange(130)
    answers[[7, 128]] = 128, 7
    splits = splits_of(labels, map(str, labels))
    confusion = page_results.describe_confusion(np.eye(130)[answers], splits, RunFolder(tmp_path))
    assert (confusion["shown"], confusion["of"]) == (100, 130)
    assert "<title>128: 1 of 1 taken for 7</title>" in confusion["matrix"]
    assert (tmp_path / "figures" / "confusion.png").is_file()


def test_a_mistake_that_cannot_be_read_any_more_keeps_its_place(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png", tmp_path / "gone\udce9.png"]
    splits = splits_of([0, 0], ["<i>", "dog"], paths)
    first, second = page_results.show_mistakes(np.array([[0, 1.0], [0, 5.0]]), splits, RunFolder(tmp_path))
    assert first[0] is None
    assert first[1][:2] == ["is <i>", "answer dog, 99.3%"]
    assert first[1][2].endswith("gone\udce9.png")
    assert "is &lt;i&gt;; answer dog, 73.1%" in second[0]
    assert (tmp_path / "figures" / "mistakes.png").is_file()


def test_an_image_with_several_labels_is_shown_by_what_is_most_wrong_about_it(tmp_path):
    labels = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    logits = np.array([[-2, 3, -9], [-9, 9, -1.0]])
    shown = page_results.show_mistakes(logits, splits_of(labels, "abc"), RunFolder(tmp_path))
    assert [lines[:2] for _, lines in shown] == [["has a", "wrongly b, 95.3%"], ["has b, c", "misses c, 26.9%"]]


@pytest.mark.parametrize("calibration", [None, {"method": "none", "reliability": {}}])
def test_without_calibration_the_test_images_alone_have_a_diagram(tmp_path, calibration):
    logits, labels = np.eye(3) * 2, np.array([0, 1, 1])
    (shown,) = page_results.show_reliability(logits, labels, calibration, RunFolder(tmp_path))
    assert shown["split"] == "test images"
    assert page_results.show_reliability(logits * np.nan, labels, calibration, RunFolder(tmp_path)) == []
