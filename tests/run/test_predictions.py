from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from finetune.data.labeled_images import Split
from finetune.run.predictions import Predictions, read_predictions

LOGITS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def images():
    return Split([Path("a.png"), Path("caf\udce9.png")], np.array([0, 2], np.int32))


def test_steps_are_added_and_what_is_measured_again_is_replaced(tmp_path, images):
    predictions = Predictions(tmp_path / "p.parquet", images)
    assert predictions.logits("probe") is None
    predictions.add("probe", LOGITS, [])
    predictions.add("tune", LOGITS + 1, ["probe"])
    predictions.add("tune", LOGITS * 2, ["probe"])  # as a run that was interrupted in between does
    np.testing.assert_array_equal(predictions.logits("probe"), LOGITS)
    np.testing.assert_array_equal(predictions.logits("tune"), LOGITS * 2)
    predictions.add("other", LOGITS, [])
    assert predictions.logits("probe") is None


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path, images):
    Predictions(tmp_path / "p.parquet", images).add("probe", LOGITS, [])
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table["path"].to_pylist() == ["a.png", "caf\\udce9.png"]


def test_images_with_several_labels_have_a_probability_for_each_class(tmp_path):
    several = Split([Path("a.png"), Path("b.png")], np.array([[0, 1, 1], [1, 0, 0]], np.float32))
    Predictions(tmp_path / "p.parquet", several).add("probe", LOGITS, [])
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    np.testing.assert_allclose(table["probabilities.probe"].to_pylist(), 1 / (1 + np.exp(-LOGITS)), rtol=1e-6)
    assert table["label"].to_pylist() == several.labels.tolist()


def test_a_damaged_file_has_no_logits(tmp_path, images):
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no more")
    assert Predictions(tmp_path / "p.parquet", images).logits("probe") is None


def test_a_flipped_bit_never_gives_other_predictions(tmp_path, images):
    file = tmp_path / "p.parquet"
    Predictions(file, images).add("probe", LOGITS, [])
    data, seen = file.read_bytes(), 0
    for offset in range(0, len(data), 3):
        file.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        step = read_predictions(file, "probe")
        seen += step is None
        if step is not None:
            assert step.names == ["a.png", "caf\\udce9.png"]
            np.testing.assert_array_equal(step.labels, [0, 2])
            np.testing.assert_array_equal(step.logits, LOGITS)
    assert seen > 0
