import json

import numpy as np
import pytest
from command_line import RECIPE, clean_failure, finetune, read_table


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with ``noise.npz``, twelve pictures of two classes, the last of which is the first again, and a recipe
    of them."""
    root = tmp_path_factory.mktemp("doctor")
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    images[-1] = images[0]
    labels = np.arange(12) % 2
    np.savez(root / "noise.npz", x_train=images, y_train=labels, x_test=images[1:5], y_test=labels[1:5])
    recipe = RECIPE.replace("digits, test: 0.1", "noise.npz, validation: 0")
    (root / "noise.yaml").write_text(recipe, encoding="utf-8")
    return root


@pytest.mark.slow
def test_doctor_prints_what_it_looked_for_and_where_the_page_and_the_table_are(place):
    shown = finetune("doctor", "noise.yaml", "--write", "noise.csv", cwd=place)
    assert shown.returncode == 0, shown.stderr
    numbers = {row["finding"]: row["number"] for row in read_table(shown.stdout)}
    assert numbers["groups of duplicates with different labels"] == "1"
    assert numbers["images that are in an earlier split, too"] == "4"
    assert numbers["classes with few images"] == "2"
    assert "equal pixels" in shown.stdout
    assert "few to learn from: 6 training images" in shown.stdout
    assert "of 16 images their label without having learned from them" in shown.stdout
    assert "checkpoints/doctor/noise/doctor.html" in shown.stdout.replace("\\", "/")
    assert (place / "checkpoints" / "doctor" / "noise" / "doctor.html").is_file()
    assert "finetune run noise.yaml data.source=noise.csv data.columns.image=image" in shown.stdout
    again = finetune("doctor", "noise.yaml", "--write", "noise.csv", cwd=place)
    clean_failure(again, "--write: noise.csv: exists already", "choose another name")


@pytest.mark.slow  # the result is that of diagnose_data, which tests/report/test_doctor.py looks at
def test_json_is_what_the_function_returns(place):
    shown = finetune("doctor", "noise.yaml", "--output", "page", "--json", cwd=place)
    assert json.loads(shown.stdout) == json.loads((place / "page" / "doctor.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope.yaml"], ["no such file"]),
        (["noise.yaml", "data.sorce=x"], ["did you mean", "source"]),
        (["noise.yaml", "data.source=nope"], ["data.source: nope: no such file"]),
        (["noise.yaml", "head.num_classes=3"], ["head.num_classes: 3", "2 classes"]),
        (["noise.yaml", "--output", "noise.npz"], ["noise.npz", "a file has that name"]),
        (["noise.yaml", "--write", "noise.npz"], ["--write: noise.npz", "give it that ending"]),
    ],
)
def test_a_mistake_is_one_message(place, arguments, words):
    clean_failure(finetune("doctor", *arguments, cwd=place, columns=300), *words)
