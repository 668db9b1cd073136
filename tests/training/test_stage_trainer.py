import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from finetune.errors import ModelError, PartitionError, RecipeError
from finetune.images.spec import ImageSpec
from finetune.models.classifier import build_classifier
from finetune.models.families.resnet import ResNetConfig, ResNetModule
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.optim.parameter_plan import ParameterPlan
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.losses import balanced_weights
from finetune.training.stage_trainer import StageTrainer

SPEC = ImageSpec(32, 32, None, "bicubic", (0.5,) * 3, (0.25,) * 3)
RESNET = ResNetConfig(stem_sizes=(4,), hidden_sizes=(4, 8), inner_sizes=(4, 8), depths=(1, 1), bottleneck=False)


@pytest.fixture(scope="module")
def clip():
    """A vision tower like CLIP's, with two blocks."""
    module = VisionTransformer(
        ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            image_size=32,
            patch_size=8,
            patch_bias=False,
            pre_norm=True,
            norm_after_pool=True,
        )
    )
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return build_classifier((module, variables), 10, head_init="lecun_normal", image_size=32)


@pytest.fixture(scope="module")
def resnet():
    module = ResNetModule(RESNET)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return build_classifier((module, variables), 10, head_init="lecun_normal", image_size=32)


def a_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8), "label": rng.integers(0, 10, size)}


def training(model, partitions, **stage):
    stage = TrainStage.model_validate({"steps": 10, "batch_size": 8, "partitions": partitions, **stage})
    return StageTrainer(stage, *model, SPEC, StageLength(10), seed=3)


def run(made, steps=3, state=None):
    state = state or made.init_state()
    for number in range(steps):
        state, metrics = made.step(state, made.frozen, a_batch(seed=number))
    return state, metrics


def flat(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def changed(before, after):
    before, after = flat(before), flat(after)
    assert before.keys() == after.keys()
    return {path for path in before if not np.array_equal(before[path], after[path])}


HEAD = {"match": "head", "learning_rate": 1e-2}
LAST = {"match": "stages_1/.*", "learning_rate": 1e-2}
FROZEN = {"match": ".*", "frozen": True}


def test_each_batch_norm_follows_its_partition(resnet):
    _, variables = resnet
    rules = [HEAD, {"match": "backbone/stages_1/.*", "learning_rate": 1e-2}, FROZEN]
    made = training(resnet, rules)
    state, _ = run(made)
    moved = changed(variables["batch_stats"], made.variables(state)["batch_stats"])
    assert moved == {path for path in flat(variables["batch_stats"]) if path.startswith("backbone/stages_1/")}
    assert all("stages_1" in path for path in flat(state.collections["batch_stats"]))


def test_statistics_may_be_held_where_the_module_learns_and_updated_where_it_is_frozen(resnet):
    _, variables = resnet
    held = training(resnet, [HEAD, {"match": ".*", "learning_rate": 1e-2, "batch_norm": "frozen"}])
    state, _ = run(held)
    after = held.variables(state)
    assert changed(variables["batch_stats"], after["batch_stats"]) == set()
    assert len(changed(variables["params"], after["params"])) > 10
    updated = training(resnet, [HEAD, {"match": ".*", "frozen": True, "batch_norm": "update"}])
    state, _ = run(updated)
    after = updated.variables(state)
    assert changed(variables["batch_stats"], after["batch_stats"]) == set(flat(variables["batch_stats"]))
    assert changed(variables["params"], after["params"]) == {"head/kernel", "head/bias"}


def test_a_held_norm_computes_in_training_what_it_computes_in_evaluation(resnet):
    classifier, variables = resnet
    made = training(resnet, [HEAD, {"match": "norms", "frozen": True}, {"match": ".*", "learning_rate": 1e-2}])
    batch = a_batch()
    _, metrics = made.step(made.init_state(), made.frozen, batch)
    logits = classifier.apply(variables, SPEC.normalize(jnp.asarray(batch["image"])))
    loss = -jax.nn.log_softmax(logits)[np.arange(8), batch["label"]].mean()
    np.testing.assert_allclose(metrics["loss"] / metrics["count"], loss, rtol=1e-5)


def weighted(model, weights, **given):
    loss = {"name": "cross_entropy", "class_weights": weights}
    stage = TrainStage.model_validate({"steps": 10, "batch_size": 8, "partitions": [HEAD, FROZEN], "loss": loss})
    return StageTrainer(stage, *model, SPEC, StageLength(10), **given)


def first_loss(made):
    _, metrics = made.step(made.init_state(), made.frozen, a_batch())
    return float(metrics["loss"])


def test_the_class_weights_that_a_loss_lists_are_those_of_the_step(resnet):
    listed = [1.0, 9.0, *[0.5] * 8]
    as_listed = first_loss(weighted(resnet, listed))
    assert as_listed == first_loss(weighted(resnet, None, class_weights=np.array(listed, np.float32)))
    assert as_listed != first_loss(weighted(resnet, None))
    with pytest.raises(RecipeError, match=r"loss\.class_weights: 2 weights for 10 classes"):
        weighted(resnet, [1.0, 2.0])


def test_balanced_class_weights_are_given_to_a_trainer_which_sees_no_labels(resnet):
    with pytest.raises(RecipeError, match="balanced needs the training labels.* pass class_weights="):
        weighted(resnet, "balanced")
    weights = balanced_weights(a_batch()["label"], 10)
    given = first_loss(weighted(resnet, "balanced", class_weights=weights))
    assert given == first_loss(weighted(resnet, None, class_weights=weights))


LORA = {"match": "backbone/encoder/.*/(q|v)_proj/kernel", "learning_rate": 1e-2, "lora": {"rank": 4, "alpha": 8}}


@pytest.mark.parametrize("dora", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.slow
def test_adapters_learn_while_their_kernels_stay_and_the_merged_kernels_compute_the_same(clip, dora):
    classifier, variables = clip
    made = training(clip, [{**LORA, "lora": {**LORA["lora"], "dora": dora}}, HEAD, FROZEN])
    state, _ = run(made, 4)
    learned = flat(state.params)
    assert {path.split("/")[0] for path in learned} == {"lora", "head"}
    assert sum(path.endswith("lora_b") for path in learned) == 4
    assert any(path.endswith("magnitude") for path in learned) == dora
    assert changed(variables["params"], made.variables(state)["params"]) == {
        "head/kernel",
        "head/bias",
        *(f"backbone/encoder/layers/{i}/self_attn/{x}_proj/kernel" for i in range(2) for x in "qv"),
    }
    merged, batch = jax.device_get(made.variables(state)), a_batch(seed=9)
    _, metrics = made.step(state, made.frozen, batch)  # the loss before the update
    logits = classifier.apply(merged, SPEC.normalize(jnp.asarray(batch["image"])))
    loss = -jax.nn.log_softmax(logits)[np.arange(8), batch["label"]].mean()
    np.testing.assert_allclose(metrics["loss"] / metrics["count"], loss, rtol=1e-4)


def test_the_optimizer_holds_moments_of_adapters_and_none_of_their_kernels(clip):
    state = training(clip, [LORA, HEAD, FROZEN]).init_state()
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
    assert shapes == {(32, 4), (4, 32), (32, 10), (10,)}


def test_adapters_for_what_is_no_dense_kernel_are_refused(clip):
    rule = {**LORA, "match": "backbone/encoder/.*"}
    with pytest.raises(
        PartitionError, match=r"lora: .* is not the kernel of a dense layer .*; match such kernels alone"
    ):
        training(clip, [rule, HEAD, FROZEN]).init_state()


@pytest.mark.parametrize(
    "stage",
    [
        {},
        {"partitions": [{**LORA, "lora": {"rank": 2, "dora": True}}, HEAD, FROZEN], "ema_decay": 0.9},
    ],
)
def test_a_state_that_was_saved_goes_on_bit_for_bit(clip, stage):
    stage = {"partitions": [HEAD, {"match": "blocks[-1:]", "learning_rate": 1e-3}, FROZEN], **stage}
    rules = stage.pop("partitions")
    whole = training(clip, rules, **stage)
    state, _ = run(whole, 2)
    variables, tree = jax.device_get((whole.variables(state), whole.resumable(state)))
    again = StageTrainer(whole.stage, clip[0], jax.tree.map(jnp.asarray, variables), SPEC, StageLength(10), seed=3)
    fresh = again.init_state()
    assert jax.tree.structure(again.resumable(fresh)) == jax.tree.structure(tree)
    resumed = again.resume(fresh, jax.tree.map(jnp.asarray, tree))
    for number in (2, 3):
        state, _ = whole.step(state, whole.frozen, a_batch(seed=number))
        resumed, _ = again.step(resumed, again.frozen, a_batch(seed=number))
    assert not changed(whole.variables(state), again.variables(resumed))


def test_bfloat16_computes_near_float32_with_float32_masters(clip):
    rules = [HEAD, {"match": "blocks[-2:]", "learning_rate": 1e-4}, FROZEN]
    wide, narrow = (training(clip, rules, compute_dtype=dtype) for dtype in ("float32", "bfloat16"))
    (_, a), (state, b) = run(wide, 1), run(narrow, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert float(a["loss"]) != float(b["loss"])
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=0.02)


def test_frozen_leaves_may_be_held_in_bfloat16_and_come_back_as_they_were(clip):
    _, variables = clip
    made = training(clip, [HEAD, FROZEN], frozen_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(made.frozen)} == {jnp.dtype("bfloat16")}
    state, _ = run(made)
    assert changed(variables["params"], made.variables(state)["params"]) == {"head/kernel", "head/bias"}


@pytest.mark.slow
def test_rematerialization_computes_the_blocks_again_to_need_less_memory_and_changes_no_value(clip):
    rules = [HEAD, {"match": "backbone", "optimizer": "sgd", "learning_rate": 1e-2}]
    plain, again = training(clip, rules), training(clip, rules, remat=True)
    (a, _), (b, _) = run(plain, 1), run(again, 1)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert 1.2 < flops(again) / flops(plain) < 1.4  # forward, backward and forward again
    assert temporary(again) < 0.85 * temporary(plain)


def flops(made):
    return lowered(made, 32).cost_analysis()["flops"]


def temporary(made):
    return lowered(made, 256).compile().memory_analysis().temp_size_in_bytes


def lowered(made, size):
    return made.step.lower(made.init_state(), made.frozen, a_batch(size))


def test_a_backbone_that_cannot_change_its_precision_says_so():
    import flax.linen as nn

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x.mean((1, 2)))

    model = build_classifier((Plain(), Plain().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))), 10, image_size=32)
    with pytest.raises(ModelError, match="compute_dtype: Plain has no attribute 'dtype' to set"):
        training(model, [{"match": ".*", "learning_rate": 0.1}], compute_dtype="bfloat16")
    with pytest.raises(ModelError, match="remat: Plain has no attribute 'remat' to set"):
        training(model, [{"match": ".*", "learning_rate": 0.1}], remat=True)


def test_a_norm_whose_scale_and_bias_part_ways_follows_its_scale(resnet):
    _, variables = resnet
    stage = TrainStage.model_validate(
        {"steps": 1, "partitions": [{"match": "biases", "learning_rate": 0.1}, HEAD, FROZEN]}
    )
    plan = ParameterPlan.make(variables, stage.partitions)
    assert plan.frozen_norms == {path.rsplit("/", 1)[0] for path in flat(variables["batch_stats"])}


@pytest.mark.slow
def test_the_backward_pass_ends_at_the_lowest_block_that_learns(tiny_clip):
    model = build_classifier(tiny_clip, 10)

    def cost(*rules):
        return flops(training(model, [HEAD, *rules]))

    everything, least = cost({"match": "backbone", "learning_rate": 1e-3}), cost(FROZEN)
    # the last block computes its MLP for one token alone
    for count, most in ((1, 0.17), (2, 0.46)):
        share = (cost({"match": f"blocks[-{count}:]", "learning_rate": 1e-3}, FROZEN) - least) / (everything - least)
        assert 0 < share < most
