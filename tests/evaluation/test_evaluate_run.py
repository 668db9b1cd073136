import numpy as np
import pytest
from PIL import Image

from finetune.errors import DataError
from finetune.evaluation.evaluate_run import evaluate_run
from finetune.recipe import DataConfig


def digits_folder(root, names):
    from sklearn.datasets import load_digits

    data = load_digits()
    for split, count in (("train", 60), ("test", 10)):
        for name, label in names.items():
            (root / split / name).mkdir(parents=True)
            for i, image in enumerate(data.images[data.target == label][:count]):
                grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
                grey.save(root / split / name / f"{i}.png")
    return root


def test_classes_of_another_source_are_matched_by_name(small_run, tmp_path):
    root = digits_folder(tmp_path / "some", {"7": 7, "3": 3})
    result = evaluate_run(small_run.directory, str(root), split="test")
    assert (result["n"], result["split"]) == (20, "test")
    assert result["accuracy"] > 0.8


@pytest.mark.slow
def test_all_images_of_a_source_are_measured_whatever_its_layout(small_run, tmp_path):
    nested = digits_folder(tmp_path / "nested", {"7": 7, "3": 3})
    assert evaluate_run(small_run.directory, str(nested))["n"] == 140
    flat = evaluate_run(small_run.directory, str(nested / "train"))
    assert (flat["n"], flat["split"]) == (120, "all")
    with pytest.raises(DataError, match="has no validation split; it has: train, test"):
        evaluate_run(small_run.directory, str(nested), split="validation")


@pytest.mark.slow
def test_images_that_the_model_was_trained_on_are_counted(small_run):
    train, test = (evaluate_run(small_run.directory, split=split) for split in ("train", "test"))
    assert train["trained_on"] == train["n"]
    assert test["trained_on"] < test["n"] / 10


def test_broken_images_and_other_files_are_counted(small_run, tmp_path):
    root = digits_folder(tmp_path / "some", {"7": 7, "3": 3})
    (root / "test" / "7" / "broken.png").write_bytes(b"no image")
    (root / "test" / "7" / "notes.txt").write_text("about them")
    with pytest.raises(DataError, match=r"broken\.png"):
        evaluate_run(small_run.directory, str(root))
    config = DataConfig(source=str(root), on_broken_image="skip")
    result = evaluate_run(small_run.directory, config)
    assert (result["n"], result["skipped"], result["left_out"]) == (140, 1, 1)


def test_a_class_that_the_model_does_not_know_is_named(small_run, tmp_path):
    root = digits_folder(tmp_path / "other", {"seven": 7, "3": 3})
    with pytest.raises(DataError, match="does not know: seven; it knows: 0, 1"):
        evaluate_run(small_run.directory, str(root))
