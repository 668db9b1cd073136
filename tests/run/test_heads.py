"""Stages that fit a head to features, within a run: measured, saved, restored, and gone on from."""

import json

import numpy as np
import pytest
from command_line import clean_failure
from command_line import finetune as command

import finetune
from finetune.errors import RecipeError
from finetune.evaluation.statistics import wilson_interval

DATA = {"source": "digits", "fraction": 0.2, "validation": 0.2, "test": 0.1}
TEMPLATES = ["a photo of the digit {}", "the number {}"]
NAMES = {"linear_probe": "probe", "lp++": "lp_plus_plus"}


def a_recipe(*stages, **parts):
    head = {"templates": TEMPLATES} if any(s["type"] in ("tip_adapter", "lp++", "clap") for s in stages) else {}
    document = {"name": "heads", "seed": 3, "backbone": {"source": "builtin:tiny-clip"}, "head": head, "data": DATA}
    return finetune.Recipe.model_validate({**document, **parts, "stages": list(stages)})


def run(folder, *stages, **options):
    return finetune.run(a_recipe(*stages), output=folder, quiet=True, **options)


def training(match, **options):
    rules = [{"match": match, "learning_rate": 1e-4}, {"match": ".*", "frozen": True}]
    return {"type": "train", "epochs": 2, "batch_size": 16, "partitions": rules, **options}


def digits(count=60):
    from sklearn.datasets import load_digits

    images = load_digits().images[-count:]
    return [np.repeat((image * 15).astype(np.uint8)[..., None], 3, -1) for image in images], load_digits().target[
        -count:
    ]


def slow(*values):
    """Left to CI, as another case shows much of the same."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("head", [*map(slow, ("knn", "prototype", "lp++", "clap", "tip_adapter"))])
def test_a_head_is_measured_saved_and_restored(tmp_path, head):
    result = run(tmp_path / "run", {"type": head})
    (measured,) = result.summary["results"]
    assert measured["name"] == NAMES.get(head, head)
    assert measured["accuracy"] > 0.85
    again = finetune.evaluate_run(tmp_path / "run")
    assert again["accuracy"] == pytest.approx(measured["accuracy"])
    (tmp_path / "run" / "model").rename(tmp_path / "moved")  # the bundle alone
    images, labels = digits()
    predictor = finetune.restore(tmp_path / "moved")
    probabilities = predictor.predict_proba(images)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)
    assert (probabilities.argmax(1) == labels).mean() > 0.7


@pytest.mark.parametrize(
    ("head", "match"),
    [slow("prototype", "head"), slow("tip_adapter", "head/keys"), slow("knn", "norms")],
)
def test_the_next_stage_starts_from_the_head(tmp_path, head, match):
    result = run(tmp_path / "run", {"type": head}, training(match))
    first, second = result.summary["results"][:2]
    assert second["accuracy"] >= first["accuracy"] - 0.02
    restored = finetune.restore(tmp_path / "run")
    assert restored.model.head_config is None if head == "prototype" else restored.model.head_config.size > 100


@pytest.mark.slow
def test_a_run_resumes_after_a_head_that_is_no_linear_layer(tmp_path, monkeypatch):
    stages = [{"type": "knn"}, training("norms"), {"type": "prototype"}]
    whole = run(tmp_path / "whole", *stages)

    class Stopped(Exception):
        pass

    from finetune.run.session import RunSession

    save = RunSession.save_end

    def stop(session, index):
        save(session, index)
        session.checkpoints.wait()
        if index == 0:
            raise Stopped

    monkeypatch.setattr(RunSession, "save_end", stop)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", *stages)
    monkeypatch.undo()
    resumed = run(tmp_path / "stopped", *stages, resume=True)
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert [r["accuracy"] for r in resumed.summary["results"]] == [r["accuracy"] for r in whole.summary["results"]]


@pytest.mark.slow
def test_the_probe_tells_its_strength_and_whether_it_converged(tmp_path):
    result = run(tmp_path / "run", {"type": "linear_probe", "class_weights": "balanced", "standardize": True})
    records = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    fitted = next(record for record in records if "l2" in record)
    assert fitted["converged"] is True
    assert fitted["held_out"][str(fitted["l2"])] == min(fitted["held_out"].values())
    assert result.summary["results"][0]["accuracy"] > 0.9


@pytest.mark.slow
def test_the_zero_shot_head_of_several_prompts_and_a_head_start_from_the_same_features(tmp_path):
    recipe = a_recipe({"type": "prototype"}, head={"init": "zero_shot", "templates": TEMPLATES})
    result = finetune.run(recipe, output=tmp_path / "run", quiet=True)
    assert [r["name"] for r in result.summary["results"]] == ["zero_shot", "prototype"]


def test_a_head_of_class_names_needs_a_text_tower_and_says_so_first(goldens, tmp_path):
    for head in ("tip_adapter", "lp++", "clap"):
        recipe = a_recipe({"type": head}, backbone={"source": str(goldens / "vit")})
        with pytest.raises(RecipeError, match=r"stages\.0: .* starts from class names, which needs a text tower"):
            finetune.run(recipe, output=tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.0={type: linear_probe, class_weights: [1, 2]}", ("2 weights for 10 classes",)),
        ("stages.0={type: linear_probe, l2: 1.0, select_on: folds}", ("select_on: has no effect with l2",)),
        ("stages.0={type: knn, k: 0}", ("k: input should be greater than or equal to 1",)),
        ("stages.0={type: tip_adapter, learning_rate: 0.1}", ("learning_rate: has no effect without epochs",)),
        ("stages.0={type: prototype, distance: manhattan}", ("distance", "'cosine' or 'euclidean'")),
        ("stages.0={type: lp+}", ("unknown type 'lp+' (did you mean 'lp++'?)",)),
    ],
)
def test_mistakes_in_a_head_are_told_in_one_message(tmp_path, override, words):
    file = tmp_path / "heads.yaml"
    file.write_text(
        'backbone: {source: "builtin:tiny-clip"}\ndata: {source: digits, fraction: 0.2}\nstages: [{type: knn}]\n'
    )
    clean_failure(command("run", file, override, "--output", tmp_path / "run"), *words)


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (7, 10), (899, 900), (5, 5)])
def test_wilsons_interval_ends_where_the_observed_share_is_z_standard_errors_away(successes, count):
    z, share = 1.959963984540054, successes / count
    for end in wilson_interval(successes, count):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(z * np.sqrt(end * (1 - end) / count), abs=1e-12)
    low, high = wilson_interval(successes, count)
    assert low <= share <= high
    assert (low == 0) == (successes == 0)
    assert (high == 1) == (successes == count)


@pytest.mark.slow
def test_two_runs_give_the_same_head(tmp_path):
    first, second = (run(tmp_path / name, {"type": "lp++"}) for name in ("first", "second"))
    assert first.summary["weights_sha256"] == second.summary["weights_sha256"]
