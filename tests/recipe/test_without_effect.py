"""An option that has no effect beside the others is an error, where it was written; a neutral value is none."""

import copy

import pytest
from ruamel.yaml import YAML

from finetune.errors import RecipeError
from finetune.recipe import DataConfig, load_recipe

BASE = {
    "backbone": {"source": "builtin:tiny-clip"},
    "data": {"source": "images"},
    "stages": [
        {"name": "first", "epochs": 1, "partitions": [{"match": "backbone", "learning_rate": 1e-3}]},
        {
            "name": "second",
            "epochs": 1,
            "partitions": [{"match": "backbone", "learning_rate": 1e-3}, {"match": "head", "frozen": True}],
        },
    ],
}
PROBE = "stages=[{type: linear_probe}]"
HEAD = "stages.0.partitions.0.match=head"
ONLY_HEAD = ["~stages.1", "stages.0.partitions=[{match: head/.*, learning_rate: 1}, {match: backbone, frozen: true}]"]
RULE = "stages.0.partitions.0"


@pytest.fixture
def load(tmp_path):
    def load(*overrides):
        file = tmp_path / "mine.yaml"
        with file.open("w") as stream:
            YAML(typ="safe", pure=True).dump(copy.deepcopy(BASE), stream)
        return load_recipe(file, overrides)

    return load


# what is written; and to what else it has no effect
CASES = [
    # frozen partitions
    *(
        (f"stages.1.partitions.1.{option}", [], "on a frozen partition")
        for option in (
            "name=top",
            "optimizer=adamw",
            "optimizer=sgd",
            "learning_rate=1",
            "schedule=constant",
            "weight_decay=0.1",
            "weight_decay_on=all",
            "layer_decay=0.7",
            "l2_sp=0.1",
            "lora={}",
        )
    ),
    # trainable partitions
    (f"{RULE}.weight_decay_on=all", [], "without weight_decay"),
    (f"{RULE}.weight_decay=0.1", [f"{RULE}.match=embeddings"], "on embeddings, .* weight_decay_on: all"),
    (f"{RULE}.layer_decay=0.7", [HEAD], "on the head"),
    (f"{RULE}.layer_decay=0.7", [f"{RULE}.match=head/kernel"], "on the head"),
    (f"{RULE}.batch_norm=frozen", [HEAD], "on the head, which has no batch normalization"),
    (f"{RULE}.l2_sp=0.1", [f"{RULE}.lora={{}}"], "with lora"),
    (f"{RULE}.weight_decay_on=all", [f"{RULE}.lora={{}}", f"{RULE}.weight_decay=0.1"], "with lora"),
    (f"{RULE}.optimizer.b1=0.5", [f"{RULE}.lora={{}}", f"{RULE}.optimizer={{name: muon}}"], "with lora, .* muon"),
    (f"{RULE}.optimizer.b2=0.5", [f"{RULE}.lora={{}}", f"{RULE}.optimizer={{name: muon}}"], "with lora, .* muon"),
    # optimizers, schedules and losses
    (f"{RULE}.optimizer.nesterov=true", [f"{RULE}.optimizer={{name: sgd, momentum: 0}}"], "with momentum 0"),
    (f"{RULE}.optimizer.nesterov=true", [f"{RULE}.optimizer={{name: muon, momentum: 0}}"], "with momentum 0"),
    (f"{RULE}.schedule.warmup_init_factor=0", [f"{RULE}.schedule={{name: cosine}}"], "without a warmup"),
    (
        f"{RULE}.schedule.warmup_init_factor=0.5",
        [f"{RULE}.schedule={{name: cosine, warmup: {{epochs: 0}}}}"],
        "without a warmup",
    ),
    (f"{RULE}.schedule.init_factor=0.5", [f"{RULE}.schedule={{name: one_cycle, warmup: 0}}"], "without a warmup"),
    ("stages.0.loss.class_weights=[1, 1.0]", ["stages.0.loss={name: focal}"], "where each class weighs 1"),
    (
        "stages.0.loss.class_weights=balanced",
        ["stages.0.loss={name: cross_entropy}", "data.shots_per_class=5"],
        "with shots_per_class",
    ),
    # stages
    ("stages.0.mixup=0.2", ["stages.0.batch_size=4", "stages.0.grad_accum_steps=4"], "one image .* at a time"),
    ("stages.0.cutmix=1", ["stages.0.batch_size=1"], "one image .* at a time"),
    ("stages.0.frozen_dtype=bfloat16", [], "in a stage that freezes no parameter"),
    ("stages.0.remat=true", ONLY_HEAD, "in a stage that trains the head alone"),
    ("stages.0.rng_impl=rbg", ONLY_HEAD, "in a stage that trains the head alone, without dropout"),
    ("stages.0.carry_optimizer_state=true", [], "without a training stage right before"),
    ("stages.1.carry_optimizer_state=true", ["stages.0={type: linear_probe}"], "without a training stage right before"),
    ("stages.1.carry_optimizer_state=true", [f"{RULE}.optimizer=sgd"], "no partition .* optimizer of stage 'first'"),
    (
        "stages.1.carry_optimizer_state=true",
        [f"stages.{i}.partitions.0.optimizer={{name: sgd, momentum: 0}}" for i in (0, 1)],
        "no partition has a stateful optimizer",
    ),
    # the head
    ("head.templates=['a photo of a {}']", [], "with init: zeros"),
    ("head.templates=['the digit {}']", ["head={init: lecun_normal}"], "with init: lecun_normal"),
    (
        "head.dropout=0.1",
        ["head={init: none}", "backbone={module: 'm:N', image: {size: 8}}"],
        "with init: none, .*: give dropout to the module itself",
    ),
    ("head.dropout=0.1", [PROBE], "without a stage of type: train"),
    ("head.init=lecun_normal", ["stages.0={type: linear_probe}"], "before a stage that fits the head"),
    # the backbone
    ("backbone.dropout=0.1", [PROBE], "where no stage trains the backbone"),
    ("backbone.drop_path=0.1", ONLY_HEAD, "where no stage trains the backbone"),
    # data
    ("data.validation=0.1", ["data.shots_per_class=5"], "with shots_per_class"),
    ("data.subset=a", ["data.source=digits"], "on the digits"),
    ("data.revision=a", ["data.source=digits"], "on the digits"),
    ("data.columns={label: a}", ["data.source=digits"], "on the digits"),
    ("data.cache_shortest_edge=32", ["data.source=digits"], "on the digits"),
    ("data.on_broken_image=skip", ["data.source=digits"], "on the digits"),
    ("data.subset=a", ["data.source=memory"], "on datasets in memory"),
    ("data.revision=a", ["data.source=memory"], "on datasets in memory"),
    ("data.sampling=balanced", [PROBE], "without a stage of type: train"),
    ("data.cache_shortest_edge=32", [PROBE], "without a stage of type: train"),
]


@pytest.mark.parametrize(("option", "others", "case"), CASES)
def test_an_option_without_effect_is_refused_by_its_key(load, option, others, case):
    load(*others)
    with pytest.raises(RecipeError, match=rf"has no effect .*{case}") as raised:
        load(*others, option)
    key = option.partition("=")[0]
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"override {option!r}: {key}: has no effect ")


@pytest.mark.parametrize(
    ("option", "others"),
    [
        (f"{RULE}.weight_decay_on=kernels", []),
        (f"{RULE}.l2_sp=0", [f"{RULE}.lora={{}}"]),
        (f"{RULE}.layer_decay=0.7", [f"{RULE}.match=head/.*|backbone/.*"]),
        (f"{RULE}.optimizer.nesterov=false", [f"{RULE}.optimizer={{name: muon, momentum: 0}}"]),
        ("stages.1.partitions.1.weight_decay=0", []),
        ("stages.0.frozen_dtype=float32", []),
        ("stages.0.mixup=0", ["stages.0.batch_size=1"]),
        ("stages.0.carry_optimizer_state=false", []),
        ("stages.1.carry_optimizer_state=true", []),
        ("stages.0.loss.class_weights=null", ["stages.0.loss={name: focal}"]),
        ("data.validation=0", ["data.shots_per_class=5"]),
        ("data.cache_shortest_edge=null", ["data.source=digits"]),
        ("data.columns={}", ["data.source=digits"]),
        ("data.sampling=balanced", ["data.shots_per_class=5"]),  # batches are balanced too
        ("backbone.dropout=0.1", [*ONLY_HEAD, "stages.0.partitions.1.batch_norm=update"]),
        ("stages.0.rng_impl=rbg", [*ONLY_HEAD, "head.dropout=0.1"]),
        ("stages.0.rng_impl=rbg", []),
    ],
)
def test_a_value_that_asks_for_nothing_or_has_an_effect_is_accepted(load, option, others):
    load(*others, option)


def test_the_error_names_the_line_and_shows_what_was_received(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "backbone: {source: a}\n"
        "data:\n"
        "  source: digits\n"
        "  subset: small\n"
        "  cache_shortest_edge: 32\n"
        "stages: [{epochs: 1, partitions: [{match: '.*', learning_rate: 1}]}]\n"
    )
    with pytest.raises(RecipeError) as raised:
        load_recipe(file)
    first, second = str(raised.value).splitlines()
    assert first.startswith(f"{file}:4: data.subset: has no effect on the digits")
    assert first.endswith("leave it out; received 'small'")
    assert second.startswith(f"{file}:5: data.cache_shortest_edge: has no effect on the digits")


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("color_jitter: {}", r"augment\.color_jitter: has no effect while .* are all 0"),
        ("color_jitter: {hue: 0}", r"augment\.color_jitter: has no effect while .* are all 0"),
        ("random_erasing: {probability: 0}", r"random_erasing\.probability: .*has no effect with probability 0"),
    ],
)
def test_an_augmentation_that_never_changes_an_image_is_refused(load, augment, message):
    with pytest.raises(RecipeError, match=rf"stages\.0\..*{message}"):
        load(f"stages.0.augment={{{augment}}}")


def test_columns_of_one_source_are_not_asked_for_of_another():
    data = DataConfig(source="a.csv", columns={"label": "b"})
    assert data.asks_for("columns")
    other = DataConfig(source="images").with_columns_of(data)
    assert (other.source, other.columns) == ("images", data.columns)
    assert not other.asks_for("columns")
    own = DataConfig(source="b.csv", columns={"label": "c"})
    assert own.with_columns_of(data) == own
