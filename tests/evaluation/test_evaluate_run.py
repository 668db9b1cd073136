import numpy as np
import pytest
from PIL import Image

from finetune.errors import DataError
from finetune.evaluation.evaluate_run import evaluate_run


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
    result = evaluate_run(small_run.directory, str(root))
    assert result["n"] == 20
    assert result["accuracy"] > 0.8


def test_a_class_that_the_model_does_not_know_is_named(small_run, tmp_path):
    root = digits_folder(tmp_path / "other", {"seven": 7, "3": 3})
    with pytest.raises(DataError, match="does not know: seven; it knows: 0, 1"):
        evaluate_run(small_run.directory, str(root))
