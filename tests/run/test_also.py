"""Further sets of test images, which every step of a run is measured on."""

import numpy as np
import pytest
from command_line import finetune as command
from PIL import Image
from sklearn.datasets import load_digits

import finetune
from finetune.errors import DataError, RecipeError

RECIPE = """\
name: shifted
backbone: {module: "finetune.models.lenet:LeNet", image: {size: 28, channels: 1}}
data: {source: digits, fraction: 0.3, validation: 0.3, test: 0.1}
evaluate:
  also: {inverted: inverted, noisy: noisy}
stages:
  - {name: probe, type: linear_probe, l2: 1.0}
  - epochs: 1
    batch_size: 32
    partitions: [{match: ".*", learning_rate: 1.0e-3}]
"""


def write(folder, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{i}.png")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A recipe beside two folders of changed digits, one of which has three of the classes alone."""
    folder = tmp_path_factory.mktemp("recipe")
    digits = load_digits()
    images, labels = (digits.images[:60] * 15).astype(np.uint8), digits.target[:60]
    write(folder / "inverted", 255 - images, labels)
    few = labels < 3
    noise = np.random.default_rng(0).integers(0, 15, images.shape, np.uint8)
    write(folder / "noisy", (images + noise)[few], labels[few])
    (folder / "shifted.yaml").write_text(RECIPE)
    return folder / "shifted.yaml"


@pytest.mark.slow
def test_every_step_is_measured_on_every_set(file, tmp_path):
    done = command("run", file, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "noisy images" in done.stdout
    also = finetune.run(finetune.load_recipe(file), output=tmp_path / "run", resume=True, quiet=True).summary["also"]
    steps = ["probe", "finetune", "interpolated"]
    measured = {name: [r["name"] for r in results] for name, results in also.items()}
    assert measured == {"inverted": steps, "noisy": steps}
    assert [r["n"] for r in also["inverted"]] == [60] * 3
    again = finetune.evaluate_run(tmp_path / "run", str(file.parent / "noisy"))
    kept = finetune.compare_runs([tmp_path / "run"])[0]["results"]["name"]
    assert again["loss"] == pytest.approx(next(r["loss"] for r in also["noisy"] if r["name"] == kept))


def test_paths_in_a_file_are_relative_to_it(file):
    assert finetune.load_recipe(file).evaluate.also["noisy"] == str(file.parent / "noisy")
    assert finetune.load_recipe(file, ["evaluate.also.noisy=2024"]).evaluate.also["noisy"] == "2024"


def test_a_set_that_cannot_be_measured_is_told_before_anything_trains(file, tmp_path):
    with pytest.raises(DataError, match=r"evaluate\.also\.noisy: .*gone"):
        finetune.run(finetune.load_recipe(file, [f"evaluate.also.noisy={tmp_path}/gone"]), output=tmp_path / "run")
    write(tmp_path / "other", np.zeros((2, 8, 8), np.uint8), ["cat", "dog"])
    with pytest.raises(DataError, match=r"evaluate\.also\.noisy: .*classes that the model does not know: cat, dog"):
        finetune.run(finetune.load_recipe(file, [f"evaluate.also.noisy={tmp_path}/other"]), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match=r"evaluate\.also: input should be a valid dictionary"):
        finetune.load_recipe(file, ["evaluate.also=[sketches]"])
