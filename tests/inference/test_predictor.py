import json
import pickle
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.data.splits import load_splits
from finetune.errors import CheckpointError, DataError
from finetune.export.bundle import save_bundle_like
from finetune.files import hash_json


@pytest.fixture(scope="module")
def digits(small_run):
    recipe = finetune.load_recipe(small_run.directory / "recipe.yaml")
    return load_splits(recipe.data, recipe.seed).test.take(np.arange(100))


def test_predictions_equal_those_at_training_time(small_run):
    recipe = finetune.load_recipe(small_run.directory / "recipe.yaml")
    test = load_splits(recipe.data, recipe.seed).test
    predicted = [p.index for p in small_run.predictor().predict(list(test.images))]
    assert (np.array(predicted) == test.labels).mean() == small_run.summary["results"][-1]["accuracy"]


@pytest.mark.slow
def test_a_bundle_moved_alone_predicts_the_same_in_another_process(small_run, digits, tmp_path):
    shutil.copytree(small_run.directory / "model", tmp_path / "moved")
    Image.fromarray(digits.images[0]).save(tmp_path / "digit.png")
    code = (
        "import finetune, json; p = finetune.restore('moved');"
        "print(json.dumps(p.predict_proba(['digit.png']).tolist() + [list(p.class_names)]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    here = small_run.predictor().predict_proba([digits.images[0]])
    elsewhere, names = json.loads(out.stdout)
    np.testing.assert_array_equal(here[0], np.array(elsewhere, np.float32))
    assert names == [str(d) for d in range(10)]


def test_probabilities_are_the_softmax_of_the_models_calibrated_logits(small_run, digits):
    predictor = small_run.predictor()
    pixels = np.stack([predictor.image_spec.to_uint8(Image.fromarray(i).convert("RGB")) for i in digits.images])
    logits = jax.jit(predictor.model.apply)(predictor.variables, predictor.image_spec.normalize(pixels))
    found = predictor.predict_proba(list(digits.images))
    assert predictor.confidence.scale != 1
    np.testing.assert_allclose(found, jax.nn.softmax(logits * predictor.confidence.scale), atol=1e-5)
    assert found.shape == (100, 10)
    assert found.dtype == np.float32


def test_sets_hold_the_classes_that_the_validation_images_allow(small_run, digits):
    predictor = small_run.predictor()
    predictions = predictor.predict(digits.images, coverage=0.9, sets="aps")
    members = predictor.confidence.sets(predictor.predict_proba(digits.images), 0.9, "aps")
    for prediction, row in zip(predictions, members, strict=True):
        assert prediction.set == tuple(str(digit) for digit in np.flatnonzero(row))
        assert prediction.confidence == max(prediction.probabilities.values())
    assert np.mean([str(label) in p.set for p, label in zip(predictions, digits.labels, strict=True)]) > 0.8
    assert predictor.predict(digits.images[:1])[0].set is None


def test_noise_is_unknown_more_often_than_digits(small_run, digits):
    noise = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
    predictor = small_run.predictor()
    share = [np.mean([p.unknown for p in predictor.predict(list(images))]) for images in (digits.images, noise)]
    assert share[0] < 0.3 < share[1]


def test_answers_are_accepted_where_they_are_sure_enough(small_run, digits):
    predictor = small_run.predictor()
    predictions = predictor.predict(digits.images, max_error=0.2)
    threshold = predictor.confidence.acceptance_threshold(0.2)
    assert [p.accepted for p in predictions] == [p.confidence >= threshold for p in predictions]
    assert any(p.accepted for p in predictions)
    assert predictor.predict(digits.images[:1])[0].accepted is None
    with pytest.raises(ValueError, match="max_error: a share between 0 and 1; received 5"):
        predictor.predict(digits.images[:1], max_error=5)


def test_a_saved_step_has_no_confidence_since_that_is_the_chosen_models(small_run, digits):
    predictor = finetune.restore(small_run.directory, step="last")
    assert predictor.confidence is None
    assert predictor.predict(digits.images[:1])[0].unknown is None
    with pytest.raises(CheckpointError, match="coverage: the model has seen no validation images"):
        predictor.predict(digits.images[:1], coverage=0.9)


@pytest.mark.parametrize("options", [{"coverage": 1.0}, {"coverage": 0.9, "sets": "all"}])
def test_a_coverage_or_kind_of_sets_that_does_not_exist_is_refused(small_run, digits, options):
    with pytest.raises(ValueError, match="received"):
        small_run.predictor().predict(digits.images[:1], **options)


def test_every_way_of_giving_an_image_gives_the_same(small_run, digits, tmp_path):
    array = digits.images[3]
    path = tmp_path / "digit.png"
    Image.fromarray(array).save(path)
    rows = small_run.predictor().predict_proba([path, str(path), path.read_bytes(), array, Image.open(path)])
    assert np.ptp(rows, axis=0).max() == 0


def test_one_image_outside_a_list_is_refused(small_run, digits):
    rgb, rgba = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 4), np.uint8)
    for image in (digits.images[0], rgb, rgba, jnp.asarray(digits.images[0]), jnp.asarray(rgb), "digit.png"):
        with pytest.raises(TypeError, match="put the one image in a list"):
            small_run.predictor().predict(image)


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 3)])
def test_an_array_of_images_is_a_batch_in_numpy_and_in_jax(small_run, shape):
    predictor, images = small_run.predictor(), np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = predictor.predict_proba(list(images))
    assert len(expected) == 5
    for batch in (images, jnp.asarray(images)):
        np.testing.assert_array_equal(predictor.predict_proba(batch), expected)


def test_a_generator_is_taken_a_batch_at_a_time(small_run, digits):
    predictor = small_run.predictor()
    taken = []

    def images():
        for i in range(70):
            taken.append(i)
            yield digits.images[i]

    np.testing.assert_array_equal(predictor.predict_proba(images()), predictor.predict_proba(list(digits.images[:70])))
    assert taken == list(range(70))
    with pytest.raises(TypeError, match="takes a list of images; received int"):
        predictor.predict(3)


@pytest.mark.parametrize("used", [False, True])
def test_a_predictor_is_copied_by_pickle_at_any_time(small_run, digits, used):
    predictor = small_run.predictor()
    expected = small_run.predictor().predict_proba(digits.images[:3])
    if used:
        predictor.predict(digits.images[:1])
    copied = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_array_equal(copied.predict_proba(digits.images[:3]), expected)
    assert copied.class_names == predictor.class_names


def test_no_images_give_no_predictions(small_run):
    assert small_run.predictor().predict([]) == []


def test_a_file_that_is_no_image_is_named(small_run, tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"notes\.png: not an image"):
        small_run.predictor().predict([tmp_path / "notes.png"])


def test_saved_steps_restore_by_number_and_as_the_last(small_run):
    last = finetune.restore(small_run.directory, step="last")
    number = max(int(folder.name) for folder in (small_run.directory / "state").iterdir())
    same = finetune.restore(small_run.directory, step=number)
    with finetune.RunCheckpoints(small_run.directory / "state", read_only=True) as states:
        saved = states.variables(number)
    for predictor in (last, same):
        np.testing.assert_array_equal(
            predictor.variables["params"]["head"]["kernel"], saved["params"]["head"]["kernel"]
        )
    with pytest.raises(CheckpointError, match="no saved step 99999; there are: "):
        finetune.restore(small_run.directory, step=99999)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.json").unlink(), "no run and no model bundle"),
        (lambda d: (d / "model.json").write_text("{"), "cannot be read as JSON"),
        (lambda d: _flip(d / "model.json", b'"3"', b'"2"'), "model.json: changed since it was written"),
        (lambda d: shutil.rmtree(d / "weights"), "the weights cannot be read"),
        (lambda d: _rewrite(d, weights_sha256="0" * 64), "not those that model.json was written with"),
        (
            lambda d: _rewrite(d, format=99),
            "format 99, made by a newer version of finetune; this one reads 1 to 5: upgrade",
        ),
        (lambda d: _rewrite(d, head={"num_classes": 7, "pool": None, "dropout": 0.0}), "the head gives 7 numbers, and"),
    ],
)
def test_a_damaged_bundle_says_what_is_wrong(small_run, tmp_path, damage, message):
    shutil.copytree(small_run.directory / "model", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        finetune.restore(tmp_path / "model")


def test_truncated_weights_are_an_error_and_never_a_wrong_answer(small_run, tmp_path):
    shutil.copytree(small_run.directory / "model", tmp_path / "model")
    largest = max(
        (p for p in (tmp_path / "model" / "weights").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="weights"):
        finetune.restore(tmp_path / "model")


def test_a_model_that_a_kill_left_between_two_names_is_restored_and_not_moved(small_run, tmp_path):
    shutil.copytree(small_run.directory / "model", tmp_path / "run" / "model.old")
    shutil.copyfile(small_run.directory / "run.json", tmp_path / "run" / "run.json")
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        assert finetune.restore(folder).class_names == small_run.predictor().class_names
    assert finetune.load_bundle(tmp_path / "run" / "model").class_names == small_run.predictor().class_names
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bundle_does_not_replace_what_is_none(small_run, tmp_path):
    model = shutil.copytree(small_run.directory / "model", tmp_path / "model")
    (model / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"has files that are no bundle's: notes\.txt; move them"):
        save_bundle_like(model, small_run.directory / "model", {})
    (tmp_path / "link").symlink_to(model)
    with pytest.raises(CheckpointError, match="a file or a link has the name of the bundle's folder"):
        save_bundle_like(tmp_path / "link", small_run.directory / "model", {})
    assert (model / "notes.txt").read_text() == "mine"


def _flip(file, old, new):
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, 1))


def _rewrite(folder, **changes):
    """As a hostile hand would: with a digest that fits."""
    file = folder / "model.json"
    model = {**json.loads(file.read_text()), **changes}
    del model["sha256"]
    file.write_text(json.dumps({**model, "sha256": hash_json(model)}))
