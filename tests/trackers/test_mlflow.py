import pytest

from finetune.trackers.mlflow import safe_names


@pytest.mark.parametrize(
    ("names", "safe"),
    [
        (["train/loss", "a b-c.d"], ["train/loss", "a b-c.d"]),
        (["learning_rate/head/.*", "learning_rate/.*"], ["learning_rate/head/._", "learning_rate/._"]),
        (["rate/.+", "rate/.*", "rate/.?"], ["rate/._", "rate/.__2", "rate/.__3"]),
        (["rate/..", "rate//x", "/x"], ["rate/__", "rate/_/x", "_/x"]),
    ],
)
def test_names_are_as_mlflow_takes_them_and_stay_different(names, safe):
    assert safe_names(names) == safe
