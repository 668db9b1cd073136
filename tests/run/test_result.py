"""A finished run as a notebook shows it."""

import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from finetune.run.result import RunResult

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture
def result(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "figures").mkdir()
    for name, width in (("curves", 80), ("confusion", 1280), (HOSTILE.replace("/", "_"), 20)):
        noise = rng.integers(0, 256, (80, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "figures" / f"{name}.png")
    (tmp_path / "report.html").touch()
    step = {"metric": "accuracy", "split": "test", "n": 899, "loss": 0.0686, "macro_f1": 0.9856}
    step |= {"expected_calibration_error": 0.0137}
    results = [
        {"name": "probe", "accuracy": 0.98221, "accuracy_interval": [0.971, 0.989], **step},
        {"name": HOSTILE, "accuracy": 0.98554, "accuracy_interval": [0.975, 0.992], **step},
    ]
    results[1]["paired"] = {"gained": 5, "lost": 2, "p_value": 0.45}
    summary = {
        "results": results,
        "verdict": f"Kept: {HOSTILE}.",
        "kept": {"stage": HOSTILE},
        "also": {HOSTILE: results},
    }
    return RunResult(tmp_path, summary)


def test_it_is_one_line_with_what_was_kept(result):
    assert repr(result).endswith(f"kept={HOSTILE!r}, accuracy=0.9855, test_images=899)")
    assert "\n" not in repr(result)


def test_a_notebook_shows_verdict_results_and_pictures(result):
    page = result._repr_html_()
    assert "98.6%</td><td>97.5% \u2013 99.2%</td><td>0.9856</td><td>0.0686</td>" in page
    assert "+5 \u22122, p = 0.45" in page
    assert "Kept: &lt;script&gt;" in page
    assert "<script" not in page
    assert not re.search(r'https?:|style="[^"]*(color|background)', page)
    kinds = dict(re.findall(r'<img src="data:image/(\w+);base64,([^"]+)"', page))
    assert kinds.keys() == {"png", "webp"}
    with Image.open(BytesIO(b64decode(kinds["webp"]))) as made_smaller:
        assert made_smaller.size == (1024, 64)
    assert len(page) < 1_000_000


def test_a_run_whose_pictures_are_gone_or_of_somebody_else_is_shown_without(result, tmp_path):
    figures = tmp_path / "figures"
    (figures / "secret").write_text("secret")
    (figures / "curves.png").unlink()
    (figures / "curves.png").symlink_to(figures / "secret")
    (figures / "confusion.png").write_bytes(b"no picture" * 100_000)
    assert result._repr_html_().count("<img") == 1
    assert "98.6%" in RunResult(tmp_path / "gone", result.summary)._repr_html_()


def test_a_run_without_results_is_shown_as_well(tmp_path):
    result = RunResult(tmp_path, {"results": [], "kept": None})
    assert repr(result) == f"RunResult(directory={str(tmp_path)!r})"
    assert str(tmp_path) in result._repr_html_()


def test_images_with_several_labels_have_their_own_measure(tmp_path):
    step = {"name": "probe", "metric": "mean_average_precision", "mean_average_precision": 0.87654, "accuracy": 0.5}
    summary = {"results": [{**step, "n": 10, "loss": 0.1}], "kept": {"stage": "probe"}}
    assert "mean_average_precision=0.8765" in repr(RunResult(tmp_path, summary))
    assert "<td>0.8765</td><td>50.0%</td>" in RunResult(tmp_path, summary)._repr_html_()
