import numpy as np
import pytest

from finetune.evaluation.metrics import Evaluation
from finetune.evaluation.verdict import compare_results, conclude, describe_result

LABELS = np.array([0, 1, 2, 1])
LOGITS = np.array([[9, 0, 0], [0, 9, 0], [9, 0, 0], [0, 9, 0]], np.float32)


def test_a_result_has_its_interval_and_calibration():
    facts = describe_result(Evaluation(4, 0.75, 2.25, logits=LOGITS), LABELS)
    assert facts["accuracy_interval"][0] < 0.75 < facts["accuracy_interval"][1]
    assert facts["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert facts["expected_calibration_error"] == pytest.approx(0.25, abs=1e-3)
    assert "logits" not in facts


def test_images_with_several_labels_have_what_is_defined_for_them():
    labels = np.array([[1, 0], [1, 1]], np.float32)
    logits = np.array([[2, -1], [3, -4]], np.float32)
    facts = describe_result(Evaluation(2, 0.5, 1.0, 0.75, logits), labels)
    assert facts["metric"] == "mean_average_precision"
    assert facts["macro_f1"] == pytest.approx(0.5)
    assert "expected_calibration_error" not in facts


def test_logits_that_are_not_finite_have_no_calibration():
    broken = np.full_like(LOGITS, np.nan)
    assert describe_result(Evaluation(4, 0.25, np.nan, logits=broken), LABELS)["expected_calibration_error"] is None


def test_the_steps_are_compared_image_by_image():
    better = LOGITS.copy()
    better[2] = [0, 0, 9]
    test = compare_results("probe", LOGITS, better, LABELS)
    assert test == {"before": "probe", "gained": 1, "lost": 0, "p_value": 1.0}


def step(name, gained=0, lost=0, p_value=1.0, n=1000):
    return {"name": name, "n": n, "paired": {"before": "probe", "gained": gained, "lost": lost, "p_value": p_value}}


@pytest.mark.parametrize(
    ("last", "kept", "chosen", "said"),
    [
        (step("tune", 30, 4, 1e-6), "tune", True, "tune helped: +2.6 points of accuracy over probe (p = 1e-06)"),
        (step("tune", 4, 30, 1e-6), "probe", True, "tune hurt: -2.6 points of accuracy over probe (p = 1e-06)"),
        (step("tune", 5, 4, 1.0), "tune", True, "no difference that 1,000 test images can show"),
        (step("tune", 4, 30, 1e-6), "probe", True, "Kept: probe, the best on the validation images."),
        (step("tune", 5, 4, 1.0), "tune", False, "Kept: tune, the last; without validation images nothing was chosen."),
    ],
)
def test_the_verdict_says_what_helped_and_what_is_kept(last, kept, chosen, said):
    assert said in conclude([{"name": "probe", "n": 1000}, last], kept, chosen=chosen)


def test_a_single_result_needs_no_verdict():
    assert conclude([{"name": "zero_shot", "n": 10}], "zero_shot", chosen=False) == ""
