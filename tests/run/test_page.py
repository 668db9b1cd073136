import errno
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.folder.run_folder import RunFolder
from finetune.run import page
from finetune.run.page import write_report
from finetune.run.progress import Progress
from finetune.run.setup import prepare_run

SECTIONS = "steps curves classes confusion reliability mistakes batch data partitions weights environment reproduce"

NAMES = ["<script>alert(1)", "a & b", "Ünï 猫 $x$"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run of a probe alone, without validation images, on classes whose names are no HTML."""
    folder, rng = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0)
    for name in NAMES:
        (folder / "data" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (30, 30), np.uint8)).save(folder / "data" / name / f"{i}<img>.png")
    recipe = {
        "backbone": {"module": "finetune.models.lenet:LeNet", "image": {"size": 28, "channels": 1}},
        "data": {"source": "data", "validation": 0, "test": 0.5},
        "stages": [{"type": "linear_probe", "name": "probe", "l2": 1.0}],
    }
    (folder / "r.yaml").write_text(json.dumps(recipe))
    return finetune.run(finetune.load_recipe(folder / "r.yaml"), output=folder / "run", quiet=True)


def lacks_nothing(text):
    """What holds of every page: nothing is loaded, nothing runs, and pictures are described."""
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", text))
    assert all("aria-label=" in tag or "aria-hidden=" in tag for tag in re.findall(r"<svg[^>]*>", text))


def test_a_run_ends_with_a_page_that_has_everything_in_its_order(small_run):
    text = small_run.report.read_text()
    lacks_nothing(text)
    assert re.findall(r'<h2 id="(\w+)"', text) == SECTIONS.split()
    assert small_run.summary["verdict"] in text
    for result in small_run.summary["results"]:
        assert f"{result['accuracy']:.1%}" in text
    assert re.search(r'<tr class="marked"><td>\w+ \(kept\)</td>', text)
    assert "validation images, in-sample" in text
    assert small_run.summary["weights_sha256"] in text
    assert "stages:" in text
    assert len(text) < 500_000


def test_the_figures_lie_beside_the_page(small_run):
    names = {"curves", "confusion", "reliability", "weight_change", "mistakes", "finetune_batch"}
    assert {file.stem for file in (small_run.directory / "figures").glob("*.png")} == names


def test_the_summary_has_the_change_of_each_layer(small_run):
    layers = small_run.summary["layer_change"]["finetune"]
    moved = [layer for layer, change in layers.items() if change["distance"] > 0]
    assert moved == ["encoder/layers/3", "head"]
    of_partition = small_run.summary["weight_change"]["finetune"]["backbone/encoder/layers/3/.*"]
    assert layers["encoder/layers/3"]["distance"] == of_partition["distance"]


def test_what_is_fitted_and_what_is_held_out_have_their_bins_in_the_summary(small_run):
    bins = small_run.summary["calibration"]["reliability"]
    results, kept = small_run.summary["results"], small_run.summary["kept"]["stage"]
    (result,) = [result for result in results if result["name"] == kept]
    before = bins["test"]["before"]
    gaps = sum(count * abs(confidence - right) for confidence, right, count in before)
    assert gaps / result["n"] == pytest.approx(result["expected_calibration_error"])
    assert (
        sum(count for *_, count in bins["validation"]["after"]) == small_run.summary["calibration"]["validation"]["n"]
    )


def test_names_are_escaped_and_what_the_run_lacks_is_said(hostile):
    text = hostile.report.read_text()
    lacks_nothing(text)
    for name in ("&lt;script&gt;alert(1)", "a &amp; b", NAMES[2], "&lt;img&gt;"):
        assert name in text
    assert "Nothing was calibrated." in text
    assert "no stage of gradient descent has logged anything" in text
    assert "no stage trained on images" in text


def test_a_page_that_cannot_be_written_leaves_the_results_and_is_written_later(hostile, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(hostile.directory, folder)
    (folder / "report.html").unlink()
    recipe = finetune.load_recipe(folder / "recipe.yaml")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(page, "write_text", fail)
        result = finetune.run(recipe, output=folder, resume=True)
    assert result.summary == hostile.summary
    assert "report.html: cannot be written: No space left on device; the results are saved" in capsys.readouterr().err
    assert not result.report.exists()
    assert finetune.run(recipe, output=folder, resume=True, quiet=True).report.is_file()


def test_results_on_other_images_have_a_table_of_their_own(hostile, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(hostile.directory, folder.directory)
    summary = hostile.summary | {"also": {"<rainy>": hostile.summary["results"]}}
    write_report(prepare_run(folder.recipe()), folder, summary, Progress(quiet=True))
    text = folder.report.read_text()
    assert "<caption>On &lt;rainy&gt;</caption>" in text
    accuracy = f"<td>{hostile.summary['results'][0]['accuracy']:.1%}</td>"
    assert text.count(accuracy) > hostile.report.read_text().count(accuracy)
