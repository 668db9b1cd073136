"""What is frozen is computed once: the same weights, no second extraction, and nothing lost where it is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import finetune as command
from PIL import Image

import finetune
from finetune.errors import RecipeError
from finetune.folder.run_folder import RunFolder
from finetune.run import features

RECIPE = """\
name: cached
seed: 3
backbone: {source: "builtin:tiny-clip"}
data: {source: digits, fraction: 0.1, validation: 0.2, test: 0.05}
stages:
  - name: finetune
    epochs: 2
    batch_size: 16
    partitions:
      - {match: head, learning_rate: 1.0e-3}
      - {match: "blocks[-1]", learning_rate: 1.0e-3}
      - {match: ".*", frozen: true}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "cached.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(file, tmp_path, capfd):
    """``run(name, *overrides)``: (the result, the lines that were shown)."""

    def start(name, *overrides, **options):
        result = finetune.run(finetune.load_recipe(file, overrides), output=tmp_path / name, **options)
        return result, capfd.readouterr().err

    return start


def weights(result):
    return jax.device_get(finetune.restore(result.directory).variables)


def assert_close(one, other, tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.slow  # tests/training/test_frozen_prefix.py shows the same of single steps
@pytest.mark.usefixtures("cache")
def test_a_run_from_kept_features_has_the_weights_of_one_from_images_and_a_second_run_reuses_them(run):
    images, shown = run("images", "stages.0.frozen_cache=off")
    assert "features" not in shown
    kept, shown = run("kept")
    assert "of a step's FLOPs are frozen, and computed once" in shown
    assert "finetune: features of 136 images" in shown
    assert_close(weights(kept), weights(images), 1e-6)
    for one, other in zip(kept.summary["results"], images.summary["results"], strict=True):
        assert (one["accuracy"], one["loss"]) == pytest.approx((other["accuracy"], other["loss"]), rel=1e-5)
    _, shown = run("again", "stages.0.partitions.0.learning_rate=0.01")
    assert "finetune: the features of 136 images are reused" in shown
    record = next(r for r in map(json.loads, (kept.directory / "metrics.jsonl").open()) if "frozen_cache" in r)
    assert record["frozen_cache"]["use"] is True
    assert record["frozen_cache"]["bytes_per_image"] == 17 * 192 * 4
    assert (kept.directory / "figures" / "finetune_batch.png").is_file()


@pytest.mark.parametrize(
    "change", [["seed=4", "data.validation=0.3"], ["backbone.image_size=64"], ["stages.0.frozen_cache.dtype=float16"]]
)
@pytest.mark.slow
def test_other_images_another_size_or_another_dtype_are_computed_anew(run, cache, change):
    run("first")
    _, shown = run("second", *change)
    assert "finetune: features of" in shown


def folder_of_images(path, count=16):
    rng = np.random.default_rng(0)
    for i in range(count):
        file = path / "train" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_an_image_that_was_changed_since_is_seen(run, tmp_path):
    folder = folder_of_images(tmp_path / "images")
    data = [f"data={{source: {folder}, validation: 0, test: 0.25}}", "stages.0.batch_size=4", "stages.0.epochs=1"]
    data += ["stages.0.partitions=[{match: head, learning_rate: 0.1}, {match: '.*', frozen: true}]"]
    data += ["stages.0.frozen_cache=on"]
    run("first", *data)
    assert "are reused" in run("second", *data)[1]
    changed = sorted((folder / "train").rglob("*.png"))
    for image in changed:
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    assert "are reused" not in run("third", *data)[1]


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_views_of_augmented_images_are_kept_and_drawn_from(run):
    _, shown = run("none", "stages.0.augment.hflip=0.5", "stages.0.epochs=1")
    assert "computed in each step, as training images are augmented (frozen_cache.views keeps some)" in shown
    result, shown = run("views", "stages.0.augment.hflip=0.5", "stages.0.frozen_cache={views: 3}")
    assert "finetune: features of 408 images" in shown
    assert result.summary["results"][-1]["accuracy"] > 0.3


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("most", "words"), [(2**30, "they are kept in memory"), (0, "trained from images")])
def test_on_a_full_disk_features_stay_in_memory_or_the_run_goes_on_without(run, monkeypatch, most, words):
    images, _ = run("images", "stages.0.frozen_cache=off")
    monkeypatch.setattr(features, "_IN_MEMORY", most)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    kept, shown = run("kept")
    assert f"features cannot be kept there: No space left on device; {words}" in shown
    assert_close(weights(kept), weights(images), 1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_more_than_max_gb_is_computed_in_each_step(run):
    _, shown = run("run", "stages.0.frozen_cache={max_gb: 0.000001}", "stages.0.epochs=1")
    assert "computed in each step: 13.1 kB an image, 0.00341 GB, and at most 1e-06 GB are to be kept" in shown


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.0.frozen_cache={views: 2}"], "frozen_cache.views: has no effect without augmentation"),
        (["stages.0.mixup=0.2", "stages.0.frozen_cache=on"], "frozen_cache: has no effect with mixup"),
        (["stages.0.augment.hflip=0.5", "stages.0.frozen_cache=on"], "frozen_cache: has no effect on augmented images"),
        (["stages.0.frozen_cache={mode: off, max_gb: 3}"], "frozen_cache.max_gb: has no effect with mode: off"),
        (["stages.0.frozen_cache=never"], "frozen_cache.mode: input should be 'auto', 'on' or 'off'"),
    ],
)
def test_what_makes_no_sense_is_refused(file, overrides, message):
    with pytest.raises(RecipeError, match=message):
        finetune.load_recipe(file, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("later", [pytest.param("auto", marks=pytest.mark.long), "off"])
def test_a_run_stopped_within_a_stage_goes_on_with_kept_features_or_without(run, file, tmp_path, cache, later):
    """The same recipe, whose features are gone or cannot be used when it goes on."""
    whole, _ = run("whole", "stages.0.epochs=4")
    folder = tmp_path / "stopped"
    stop_after(["run", file, "stages.0.epochs=4", "--output", folder], "epoch 2/4")
    if later == "off":
        recipe = finetune.load_recipe(folder / "recipe.yaml", ["stages.0.frozen_cache=off"])
        RunFolder(folder).write_recipe(recipe)
        resumed = finetune.run(recipe, output=folder, resume=True)
    else:
        resumed, _ = run("stopped", "stages.0.epochs=4", resume=True)
    assert_close(weights(resumed), weights(whole), 0 if later == "auto" else 1e-5)


@pytest.mark.slow
def test_an_extraction_that_is_stopped_goes_on_where_it_was(file, tmp_path, cache):
    data = ["data.fraction=1", "backbone.image_size=64", "stages.0.partitions.0.learning_rate=0.01"]
    arguments = ["run", file, *data, "--output", tmp_path / "run"]
    log = tmp_path / "cache" / "features"
    process = start(arguments)
    while process.poll() is None and not [path for path in log.glob("*/blocks") if path.stat().st_size]:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM during finetune: features; saved" in error
    assert "Traceback" not in error
    shown = command(*arguments, "--resume").stderr
    assert "are reused, " in shown


def start(arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(finetune.__file__).parent.parent)}
    program = [sys.executable, "-m", "finetune.cli", *map(str, arguments)]
    return subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def stop_after(arguments, line):
    process = start(arguments)
    for shown in process.stderr:
        if line in shown:
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
