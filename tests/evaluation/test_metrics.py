import numpy as np
import pytest

from finetune.data.labeled_images import Split
from finetune.errors import DataError
from finetune.evaluation.metrics import Evaluation, evaluate
from finetune.images.spec import ImageSpec

SPEC = ImageSpec(4, 4, None, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LABELS = np.float32([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
SCORES = np.float32([[4, 1, 9], [3, 2, 0], [2, 3, 0], [1, 0, 0], [0, 4, 0]])


def split_of(labels):
    """Image i is all of grey value i, so that a step can give each image its logits."""
    return Split([np.full((4, 4), i, np.uint8) for i in range(len(labels))], np.asarray(labels))


def step_of(logits):
    def step(variables, batch):
        rows = logits[batch["image"][:, 0, 0, 0]]
        weight = batch["weight"]
        labels = batch["label"]
        correct = rows.argmax(-1) == labels if labels.ndim == 1 else ((rows > 0) == labels).all(-1)
        return {"loss": weight.sum(), "correct": (correct * weight).sum(), "count": weight.sum()}, rows

    return step


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_every_image_counts_once_whatever_the_batch_size(batch_size):
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    evaluation = evaluate(step_of(logits), {}, split_of(np.int32([0, 1, 2, 1, 0])), SPEC, batch_size)
    assert evaluation == Evaluation(n=5, accuracy=pytest.approx(3 / 5), loss=1.0)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_mean_average_precision_is_over_the_classes_that_some_image_has(batch_size):
    """First class: hits at ranks 1, 3 and 5 of 5; second: at ranks 2 and 3; nothing is of the third."""
    evaluation = evaluate(step_of(SCORES), {}, split_of(LABELS), SPEC, batch_size)
    first, second = (1 + 2 / 3 + 3 / 5) / 3, (1 / 2 + 2 / 3) / 2
    assert evaluation.mean_average_precision == pytest.approx((first + second) / 2)


def test_logits_that_are_not_numbers_rank_nothing():
    evaluation = evaluate(step_of(np.full_like(SCORES, np.nan)), {}, split_of(LABELS), SPEC, 5)
    assert evaluation.mean_average_precision == pytest.approx((3 / 5 + 2 / 5) / 2)


def test_images_none_of_which_has_a_label_are_one_message():
    with pytest.raises(DataError, match="undefined: none of the 5 images has a label"):
        evaluate(step_of(SCORES), {}, split_of(np.zeros_like(LABELS)), SPEC, 5)


def test_the_metric_that_decides_is_named_beside_accuracy():
    single, several = Evaluation(10, 0.5, 1.0), Evaluation(10, 0.5, 1.0, 0.75)
    assert (single.metric, single.score()) == ("accuracy", 0.5)
    assert (several.metric, several.score()) == ("mean_average_precision", 0.75)
    assert single.to_json() == {"n": 10, "accuracy": 0.5, "loss": 1.0, "metric": "accuracy"}
    assert several.to_json() == {
        "n": 10,
        "accuracy": 0.5,
        "loss": 1.0,
        "mean_average_precision": 0.75,
        "metric": "mean_average_precision",
    }
