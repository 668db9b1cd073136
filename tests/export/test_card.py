"""The model card of a bundle: what it says, and that no name in it is ever markup."""

import re
from dataclasses import replace

import pytest
from bundles import CURRENT

import finetune
from finetune.export.bundle import read_description, save_bundle_like
from finetune.export.card import CardFacts, addressed, render_card
from finetune.recipe.yaml_text import parse_yaml

RESULT = {
    "n": 200,
    "accuracy": 0.97,
    "accuracy_interval": [0.9363, 0.9862],
    "macro_f1": 0.96,
    "loss": float("nan"),
    "expected_calibration_error": 0.05,
}
FACTS = CardFacts(
    name="owls",
    backbone="openai/clip-vit-base-patch32@main",
    base_model="openai/clip-vit-base-patch32",
    license="mit",
    data="photos",
    dataset=None,
    images={"train": 800, "validation": 100, "test": 200},
    result=RESULT,
    also={"sketches": {"n": 50, "accuracy": 0.5, "accuracy_interval": [0.36, 0.64]}},
    calibration={"test": {"expected_calibration_error_after": 0.01}},
)


@pytest.fixture(scope="module")
def description():
    return read_description(CURRENT)


def front(card):
    return parse_yaml(card.split("---\n")[1])


def test_a_card_says_what_a_run_measured_and_on_what(description):
    card = render_card(description, FACTS)
    for part in (
        "# owls\n",
        "On 200 test images, which neither trained nor chose it:",
        "| accuracy | 0.9700 | 0.9363 to 0.9862 |",
        "| expected calibration error after calibration | 0.0100 | |",
        "On 50 images of sketches: accuracy 0.5000 (95% interval: 0.3600 to 0.6400).",
        "Images of photos: 800 train, 100 validation, 200 test.",
        "Classes: cat, été, owl.",
        "The files of the backbone state: mit.",
        'finetune.restore("DIR")',
    ):
        assert part in card


def test_the_hub_is_told_task_backbone_license_and_finite_numbers(description):
    told = front(render_card(description, FACTS))
    assert (told["library_name"], told["pipeline_tag"]) == ("flax-finetune", "image-classification")
    assert (told["base_model"], told["license"]) == ("openai/clip-vit-base-patch32", "mit")
    assert told["metrics"] == ["accuracy", "f1", "expected_calibration_error"]
    (model,) = told["model-index"]
    assert model["name"] == "owls"
    assert [metric["value"] for metric in model["results"][0]["metrics"]] == [0.97, 0.96, 0.05]


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ("Apache-2.0", ("apache-2.0", None)),
        ("dinov3-license", ("other", "dinov3-license")),
        ("My Own: License!", ("other", "my-own-license")),
        (None, (None, None)),
    ],
)
def test_a_license_is_one_that_the_hub_knows_or_other_with_a_name(description, stated, told):
    card = render_card(description, replace(FACTS, license=stated))
    assert (front(card).get("license"), front(card).get("license_name")) == told
    assert ("state no license" in card) == (stated is None)


def test_a_network_without_pretrained_weights_has_no_license_of_others(description):
    card = render_card(description, replace(FACTS, backbone=None, base_model=None, license=None))
    assert "## License" not in card
    assert "trained with flax-finetune" in card


HOSTILE = [
    "a | b",
    "[click](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "`code` *bold* _x_ # y",
    "line\nbreak\r\n---\nlicense: mit",
    '"quoted" \\ and {braces}: yes',
    "\x1b[31mred\x07",
    "right\u202eleft",
    "\ud800half",
    "www.example.com",
    "&lt;b&gt;",
    "https://example.com/ and me@example.com",
    "x" * 10_000,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_is_markup(description, name):
    names = [name, "été", "owl"]
    hostile = description.model_copy(update={"class_names": names})
    facts = replace(FACTS, name=name, backbone=name, data=name, also={name: RESULT})
    card = render_card(hostile, facts)
    told = front(card)
    assert list(told) == list(front(render_card(description, FACTS)))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", card)
    body = card.split("\n---\n", 1)[1].split("```")[2]  # behind the code block
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", body)  # without what is escaped
    assert not set("<>*[]&#_") & set(bare.replace("## ", ""))
    assert "://" not in bare
    assert "www." not in bare
    assert len(card) < 10_000
    assert card.count("\n") == render_card(description, FACTS).count("\n")


def test_many_classes_are_cut_short(description):
    many = description.model_copy(update={"class_names": [f"class{i}" for i in range(1000)]})
    card = render_card(many, FACTS)
    assert "class199 and 800 more, which `model.json` lists" in card
    assert "class200" not in card


def test_a_card_that_is_pushed_names_its_place_in_its_commands_alone(description):
    card = addressed(render_card(description, replace(FACTS, name="DIR")), "me/owls")
    assert 'finetune.restore("me/owls")' in card
    assert "`finetune predict me/owls image.png`" in card
    assert "# DIR\n" in card


@pytest.mark.slow
def test_every_bundle_has_a_card_and_replaces_its_own(tmp_path):
    loaded = finetune.load_bundle(CURRENT)
    for facts, title in ((None, "# Image classifier"), (FACTS, "# owls")):
        save_bundle_like(tmp_path / "new", CURRENT, loaded.variables, loaded.confidence, facts)
        assert title in (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert finetune.load_bundle(tmp_path / "new").class_names == loaded.class_names


@pytest.mark.slow
def test_huggingface_hub_reads_the_card(description):
    from huggingface_hub import ModelCard

    data = ModelCard(render_card(description, FACTS)).data
    assert data.base_model == "openai/clip-vit-base-patch32"
    assert [result.metric_value for result in data.eval_results] == [0.97, 0.96, 0.05]


def test_the_card_of_a_run_says_its_figures_and_no_folder_of_this_machine(small_run):
    card = (small_run.directory / "model" / "README.md").read_text(encoding="utf-8")
    kept = small_run.summary["kept"]["stage"]
    (result,) = [result for result in small_run.summary["results"] if result["name"] == kept]
    low, high = result["accuracy_interval"]
    assert f"| accuracy | {result['accuracy']:.4f} | {low:.4f} to {high:.4f} |" in card
    assert str(small_run.directory.parent) not in card
