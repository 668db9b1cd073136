"""Runs on images of one's own: what becomes of broken, cached, augmented and many-labelled ones."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import datasets
import numpy as np
import psutil
import pytest
from command_line import FINETUNE, clean_failure, in_a_process
from PIL import Image
from pydantic import TypeAdapter
from sklearn.datasets import load_digits

import finetune
from finetune.errors import CheckpointError, DataError, RecipeError
from finetune.evaluation.evaluate_run import evaluate_run
from finetune.files import cache_folder
from finetune.recipe import Stage

BACKBONE = {"source": "builtin:tiny-clip"}
HEAD_ALONE = [{"match": "head", "learning_rate": 1e-2}, {"match": ".*", "frozen": True}]


def recipe(tmp_path, data, **stage):
    stage = {"epochs": 2, "batch_size": 16, "partitions": HEAD_ALONE, **stage}
    document = {"name": "own", "backbone": BACKBONE, "data": data, "stages": [stage]}
    (tmp_path / "own.yaml").write_text(json.dumps(document))
    return finetune.load_recipe(tmp_path / "own.yaml")


def digits(count):
    data = load_digits()
    return (data.images[:count] * 15).astype(np.uint8), data.target[:count]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A run on digits that have two labels each: even or odd, and whether they are below five."""
    folder = tmp_path_factory.mktemp("many")
    images, target = digits(300)
    labels = np.stack([target % 2 == 0, target % 2 == 1, target < 5], 1).astype(int)
    np.savez(folder / "digits.npz", images=images, labels=labels, class_names=np.array(["even", "odd", "small"]))
    data = {"source": str(folder / "digits.npz"), "test": 0.4, "validation": 0.2}
    made = recipe(folder, data, loss="binary_cross_entropy", epochs=6)
    return finetune.run(made, output=folder / "run", quiet=True), images, labels


@pytest.mark.slow
def test_images_with_several_labels_are_learned_and_measured_by_average_precision(many):
    result, _, _ = many
    (found,) = result.summary["results"]
    assert 0.75 < found["mean_average_precision"] <= 1
    assert 0.3 < found["accuracy"] < found["mean_average_precision"]
    records = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    validated = [r for r in records if r["split"] == "validation"]
    assert all("mean_average_precision" in r for r in validated)


def test_the_model_of_such_a_run_gives_each_class_its_own_probability(many):
    result, images, labels = many
    predictor = result.predictor()
    predictions, thresholds = predictor.predict(list(images[:100])), predictor.confidence.thresholds
    sums = [sum(p.probabilities.values()) for p in predictions]
    assert max(sums) > 1.5
    for p in predictions:
        above = {
            name for (name, value), least in zip(p.probabilities.items(), thresholds, strict=True) if value > least
        }
        assert set(p.labels) == above
    right = [
        [name in p.labels for name in ("even", "odd", "small")] == row.astype(bool).tolist()
        for p, row in zip(predictions, labels, strict=False)
    ]
    assert np.mean(right) > 0.4


def test_such_a_run_is_measured_again_to_the_same_figures(many):
    result, _, _ = many
    found = evaluate_run(result.directory)
    assert found["mean_average_precision"] == pytest.approx(result.summary["results"][0]["mean_average_precision"])


@pytest.mark.slow
def test_a_probe_of_several_labels_has_one_regression_for_each_class(many, tmp_path):
    result, _, _ = many
    data = finetune.load_recipe(result.directory / "recipe.yaml").data
    probe = finetune.Recipe(name="probe", backbone=BACKBONE, data=data, stages=[{"type": "linear_probe"}])
    probed = finetune.run(probe, output=tmp_path / "run", quiet=True)
    trained = result.summary["results"][0]["mean_average_precision"]
    assert probed.summary["results"][0]["mean_average_precision"] > trained - 0.02
    for head in ("knn", "prototype"):
        other = probe.model_copy(update={"stages": [TypeAdapter(Stage).validate_python({"type": head})]})
        with pytest.raises(RecipeError, match=f"stages.0: .*several labels each: {head} .*; use type: linear_probe"):
            finetune.run(other, output=tmp_path / head, quiet=True)


def test_a_loss_that_chooses_one_class_is_refused_for_several_labels(many, tmp_path):
    result, _, _ = many
    source = finetune.load_recipe(result.directory / "recipe.yaml").data.source
    with pytest.raises(
        RecipeError, match=r"stages.0.loss: .*several labels each: cross_entropy .*; use loss: binary_cross_entropy"
    ):
        finetune.run(recipe(tmp_path, {"source": source}), output=tmp_path / "run", quiet=True)


@pytest.fixture
def folder(tmp_path):
    """Digits as PNG files, one of them broken."""
    images, target = digits(120)
    for i, (image, label) in enumerate(zip(images, target, strict=True)):
        path = tmp_path / "data" / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((24, 24), Image.Resampling.NEAREST).save(path)
    (tmp_path / "data" / "3" / "3.png").write_bytes(b"no image")
    return tmp_path / "data"


def test_a_broken_image_stops_the_run_before_anything_is_written(folder, tmp_path):
    with pytest.raises(DataError, match=r"3\.png: not an image"):
        finetune.run(recipe(tmp_path, {"source": str(folder)}), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_skipped_images_are_listed_and_what_was_learned_from_is_shown(folder, tmp_path):
    data = {
        "source": str(folder),
        "on_broken_image": "skip",
        "validation": 0,
        "cache_shortest_edge": 16,
        "sampling": "balanced",
    }
    augment = {"random_resized_crop": True, "hflip": 0.5, "auto_augment": "trivialaugment", "random_erasing": {}}
    result = finetune.run(recipe(tmp_path, data, augment=augment, mixup=0.2), output=tmp_path / "run", quiet=True)
    assert result.summary["skipped_images"] == {"train": 1, "test": 0}
    (line,) = (result.directory / "skipped_images.txt").read_text().splitlines()
    assert line.startswith("train: ")
    assert "3.png: not an image" in line
    with Image.open(result.directory / "figures" / "finetune_batch.png") as sheet:
        assert sheet.size == (8 * 128, 2 * 142)
        assert len(set(sheet.convert("L").tobytes())) > 50


@pytest.mark.slow
def test_datasets_in_memory_are_trained_on_and_a_run_goes_on_with_no_others(tmp_path):
    images, target = digits(120)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    rows = {"image": [Image.fromarray(image) for image in images], "label": target.tolist()}
    data = datasets.Dataset.from_dict(rows, features=features)
    made = recipe(tmp_path, {"source": "memory", "validation": 0}, epochs=1)
    result = finetune.run(made, output=tmp_path / "run", quiet=True, data=data)
    assert result.summary["results"][0]["n"] == 24
    again = finetune.run(made, output=tmp_path / "run", quiet=True, data=data, resume=True)
    assert again.summary == result.summary
    with pytest.raises(CheckpointError, match="cannot resume: data.source: the images are those .* order are others"):
        finetune.run(made, output=tmp_path / "run", quiet=True, data=data.shuffle(seed=0), resume=True)


# Worker processes of a real run.


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Digits as PNG files, of which nothing is cached."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    images, target = digits(120)
    for i, (image, label) in enumerate(zip(images, target, strict=True)):
        path = tmp_path / "data" / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((24, 24), Image.Resampling.NEAREST).save(path)
    return tmp_path / "data"


def training_with_workers(tmp_path, photos, *arguments):
    """A run's process that trains, and all that it has started."""
    augment = {"hflip": 0.5, "color_jitter": {"brightness": 0.2}}
    partitions = [{"match": ".*", "learning_rate": 1e-4}]
    data = {"source": str(photos), "validation": 0, "num_workers": 2}
    recipe(tmp_path, data, epochs=200, augment=augment, partitions=partitions)
    command = [*FINETUNE, "run", tmp_path / "own.yaml", "--output", tmp_path / "run", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, **pipes)
    log = tmp_path / "run" / "metrics.jsonl"
    lines = len(log.read_text().splitlines()) if log.is_file() else 0
    while process.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) > lines + 3):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    below = psutil.Process(process.pid).children(recursive=True)
    assert sum("spawn_main" in " ".join(each.cmdline()) for each in below) == 2
    return process, below


def running(processes, seconds=5):
    psutil.wait_procs(processes, timeout=seconds)
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_no_worker_outlives_a_run_that_is_killed_and_the_run_goes_on(tmp_path, photos):
    process, below = training_with_workers(tmp_path, photos)
    process.kill()
    process.communicate()
    assert not running(below)
    process, below = training_with_workers(tmp_path, photos, "--resume")
    process.kill()
    process.communicate()
    assert not running(below)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_to_a_run_and_its_workers_saves_it_without_a_traceback(tmp_path, photos, number):
    process, below = training_with_workers(tmp_path, photos)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "saved: continue with --resume" in said
    assert "Traceback" not in said
    assert "leaked" not in said
    assert not running(below)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_with_one_message(tmp_path, photos):
    process, below = training_with_workers(tmp_path, photos)
    next(each for each in below if "spawn_main" in " ".join(each.cmdline())).kill()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "a worker process was ended by SIGKILL" in said
    assert "Traceback" not in said
    assert not running(below)


# Whether the images are those of the run.


@pytest.fixture
def finished(tmp_path, photos):
    made = recipe(tmp_path, {"source": str(photos), "validation": 0}, epochs=1)
    finetune.run(made, output=tmp_path / "run", quiet=True)
    return made, tmp_path / "run"


def change(path):
    """Other pixels in a file of the same size, under the same times."""
    times, content = path.stat(), path.read_bytes()
    image = np.asarray(Image.open(path)).copy()
    for value in range(256):
        image[5, 5] = value
        Image.fromarray(image).save(path)
        if path.stat().st_size == times.st_size and path.read_bytes() != content:
            break
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.read_bytes() != content


@pytest.mark.slow
@pytest.mark.parametrize("verify", [False, True])
def test_a_run_does_not_go_on_with_other_images_and_says_which(finished, photos, verify):
    made, folder = finished
    assert finetune.run(made, output=folder, quiet=True, resume=True, verify=verify).summary
    change(photos / "7" / "17.png")
    with pytest.raises(
        CheckpointError, match=r"cannot resume: .*1 of 120 image is not one of its start, such as .*17\.png"
    ):
        finetune.run(made, output=folder, quiet=True, resume=True, verify=verify)


@pytest.mark.slow
def test_evaluate_says_where_the_images_are_not_those_of_the_run(finished, photos, tmp_path):
    _, folder = finished
    assert evaluate_run(folder, verify=True)["notes"] == []
    shutil.copytree(photos, tmp_path / "elsewhere")
    (line,) = evaluate_run(folder, str(tmp_path / "elsewhere"))["notes"]
    assert re.fullmatch("measured on the images of .*elsewhere, not on the test images of the run", line)
    change(photos / "7" / "17.png")
    said = in_a_process("evaluate", folder, "--verify")
    assert said.returncode == 0, said.stderr
    assert re.search(
        r"note: the run's images have changed: .*1 of 120 image is not one of its start, such as .*17\.png", said.stdout
    )


@pytest.mark.slow
def test_to_verify_on_the_command_line_reads_images_again(finished, photos, tmp_path):
    """What is cached of them says that they are those of the start."""
    _, folder = finished
    (cached,) = [path for path in checks() if len(np.load(path)["problem"]) == 120]
    before = cached.read_bytes()
    change(photos / "7" / "17.png")
    known = set(checks())
    evaluate_run(folder)
    (fresh,) = set(checks()) - known
    fresh.write_bytes(before)  # as if the change had not been seen
    assert evaluate_run(folder)["notes"] == []
    arguments = ["run", tmp_path / "own.yaml", "--output", folder, "--resume"]
    assert in_a_process(*arguments).returncode == 0
    refused = in_a_process(*arguments, "--verify")
    clean_failure(refused, "1 of 120 image is not one of its start", "17.png")
    assert len(evaluate_run(folder, verify=True)["notes"]) == 1


def checks():
    return list((cache_folder() / "checks").glob("*.npz"))
