import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from finetune.errors import DataError
from finetune.evaluation.steps import make_eval_step
from finetune.images.spec import ImageSpec
from finetune.models.classifier import build_classifier
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.stage_trainer import StageTrainer

SPEC = ImageSpec(8, 8, None, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
ADAM = {"optimizer": "adam", "learning_rate": 5e-3}
HEAD_ONLY = [{"match": "head", **ADAM}, {"match": ".*", "frozen": True}]
ALL = [{"match": ".*", **ADAM}]


class ConvNet(nn.Module):
    """A backbone with batch statistics and dropout."""

    def setup(self):
        self.conv = nn.Conv(6, (3, 3), use_bias=False)  # a bias here would get rounding noise for a gradient
        self.norm = nn.BatchNorm(momentum=0.9)
        self.dropout = nn.Dropout(0.5)

    def __call__(self, x, train=False):
        x = self.norm(self.conv(x), use_running_average=not train)
        return self.dropout(nn.relu(x), deterministic=not train).mean((1, 2))


def a_batch(size=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, size).astype(np.int32),
    }


def prepare(rules, dropout=0.0, backbone=None, **stage):
    """(classifier, variables before, the stage's step, its state, what is frozen)."""
    module = backbone or ConvNet()
    variables = jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    classifier, variables = build_classifier(
        (module, variables), 3, head_init="lecun_normal", dropout=dropout, image_size=8
    )
    stage = TrainStage.model_validate({"steps": 10, "partitions": rules, "batch_size": 6, **stage})
    training = StageTrainer(stage, classifier, variables, SPEC, StageLength(10), seed=7)
    return classifier, variables, training


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_three_steps_equal_the_guides_step_written_out():
    classifier, variables, training = prepare(ALL)
    state, batch = training.init_state(), a_batch()
    for _ in range(3):
        state, _ = training.step(state, training.frozen, batch)

    params, stats, tx = variables["params"], variables["batch_stats"], optax.adam(5e-3)
    opt_state = tx.init(params)
    pixels = (batch["image"] / 255.0 - np.array(SPEC.mean)) / np.array(SPEC.std)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def guides_gradients(params, stats, number):
        logits, updated = classifier.apply(
            {"params": params, "batch_stats": stats},
            jnp.asarray(pixels, jnp.float32),
            train=True,
            rngs={"dropout": jax.random.fold_in(jax.random.key(7), number)},
            mutable=["batch_stats"],
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), updated

    for number in range(3):
        gradients, updated = guides_gradients(params, stats, number)
        updates, opt_state = tx.update(gradients, opt_state, params)
        params, stats = optax.apply_updates(params, updates), updated["batch_stats"]
    for ours, guide in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, guide, atol=1e-5)
    for ours, guide in zip(jax.tree.leaves(state.collections["batch_stats"]), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(ours, guide, atol=1e-5)


def run(training, steps=3):
    state, found = training.init_state(), []
    for seed in range(steps):
        state, metrics = training.step(state, training.frozen, a_batch(seed=seed))
        found.append(jax.device_get(metrics))
    return state, found


def test_a_frozen_backbone_keeps_parameters_and_running_statistics_bit_for_bit():
    _, variables, training = prepare(HEAD_ONLY)
    whole = training.variables(run(training)[0])
    assert leaves_equal(whole["params"]["backbone"], variables["params"]["backbone"])
    assert leaves_equal(whole["batch_stats"], variables["batch_stats"])
    assert not np.array_equal(whole["params"]["head"]["kernel"], variables["params"]["head"]["kernel"])


def test_running_statistics_move_when_the_backbone_learns():
    _, variables, training = prepare(ALL)
    state, _ = run(training, 1)
    assert not leaves_equal(state.collections["batch_stats"], variables["batch_stats"])


def test_neither_state_nor_optimizer_holds_an_array_for_a_frozen_leaf():
    _, variables, training = prepare(HEAD_ONLY)
    state = training.init_state()
    head = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["head"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == head
    assert state.collections == {}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * head
    assert len(jax.tree.leaves(training.frozen)) == len(jax.tree.leaves(variables)) - 2


def test_a_step_donates_its_state_and_leaves_the_callers_variables_alone():
    _, variables, training = prepare(HEAD_ONLY)
    state = training.init_state()
    before = jax.tree.leaves(state.params)
    training.step(state, training.frozen, a_batch())
    assert all(leaf.is_deleted() for leaf in before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((variables, training.frozen)))


@pytest.mark.slow
def test_each_generator_of_random_numbers_repeats_its_own():
    def losses(**stage):
        rules = [{"match": ".*", "optimizer": {"name": "sgd", "momentum": 0}, "learning_rate": 1e-30}]
        _, _, training = prepare(rules, dropout=0.5, mixup=0.2, grad_accum_steps=2, **stage)
        state, values = training.init_state(), []
        for _ in range(2):
            state, metrics = training.step(state, training.frozen, a_batch())
            values.append(float(metrics["loss"]))
        return values

    by_default, rbg = losses(), losses(rng_impl="rbg")
    assert losses(rng_impl="threefry2x32") == by_default
    assert losses(rng_impl="rbg") == rbg
    assert len({*by_default, *rbg}) == 4


def test_dropout_differs_at_every_step_and_repeats_with_the_seed():
    def losses():
        rules = [{"match": ".*", "optimizer": {"name": "sgd", "momentum": 0.0}, "learning_rate": 1e-30}]
        _, _, training = prepare(rules, dropout=0.5)  # nothing moves
        state, found = training.init_state(), []
        for _ in range(4):
            state, metrics = training.step(state, training.frozen, a_batch())
            found.append(float(metrics["loss"]))
        return found

    first = losses()
    assert len(set(first)) == 4
    assert losses() == first


SGD = {"optimizer": {"name": "sgd", "momentum": 0.0}, "learning_rate": 0.1}


class Plain(nn.Module):
    """A backbone without batch statistics and dropout."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(5)(x.reshape(len(x), -1)))


def gradients(training, before):
    """Of the last step, as plain gradient descent shows them, and what the step measured."""
    state, metrics = training.step(training.init_state(), training.frozen, a_batch())
    return jax.tree.map(lambda a, b: (np.asarray(b) - np.asarray(a)) / 0.1, state.params, before), metrics


@pytest.mark.parametrize("weights", [None, np.array([0.2, 1.0, 3.0], np.float32)])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole_batch(weights):
    whole = []
    for parts in (1, 3):
        _, variables, training = prepare([{"match": ".*", **SGD}], backbone=Plain(), grad_accum_steps=parts)
        stage = training.stage
        classifier, _ = build_classifier((Plain(), {"params": variables["params"]["backbone"]}), 3, image_size=8)
        training = StageTrainer(stage, classifier, variables, SPEC, StageLength(10), class_weights=weights)
        whole.append(gradients(training, variables["params"]))
    for a, b in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_images_of_another_dtype_than_uint8_are_refused(dtype, parts):
    _, _, training = prepare(HEAD_ONLY, grad_accum_steps=parts)
    batch = a_batch()
    batch["image"] = (batch["image"] / 255).astype(dtype)
    with pytest.raises(DataError, match=f"must be uint8, from 0 to 255; received {dtype}"):
        training.step(training.init_state(), training.frozen, batch)


def test_parts_of_a_batch_update_running_statistics_one_after_the_other():
    _, variables, training = prepare(ALL, grad_accum_steps=2)
    batch = a_batch()
    state, _ = training.step(training.init_state(), training.frozen, batch)
    stats, pixels = variables["batch_stats"], SPEC.normalize(jnp.asarray(batch["image"]))
    for half in (pixels[:3], pixels[3:]):
        _, stats = ConvNet().apply(
            {"params": variables["params"]["backbone"], "batch_stats": stats["backbone"]},
            half,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        stats = {"backbone": stats["batch_stats"]}
    for a, b in zip(jax.tree.leaves(state.collections["batch_stats"]), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_clipping_scales_the_gradients_of_all_that_learns_by_their_global_norm_alone():
    rules = [{"match": "head", **SGD}, {"match": ".*", "frozen": True}]
    _, variables, training = prepare(rules, backbone=Plain())
    free, metrics = gradients(training, {"head": variables["params"]["head"]})
    norm = float(optax.tree.norm(free))
    np.testing.assert_allclose(metrics["grad_norm"]["head"], norm, rtol=1e-4)
    for limit in (norm / 4, norm * 4):
        _, _, clipping = prepare(rules, backbone=Plain(), clip_grad_norm=limit)
        clipped, _ = gradients(clipping, {"head": variables["params"]["head"]})
        np.testing.assert_allclose(optax.tree.norm(clipped), min(norm, limit), rtol=1e-4)


def test_gradient_norms_are_told_by_partition():
    rules = [{"match": "head/kernel", **SGD}, {"match": ".*", "name": "rest", **SGD}]
    _, variables, training = prepare(rules, backbone=Plain())
    found, metrics = gradients(training, variables["params"])
    kernel = found["head"].pop("kernel")
    assert set(metrics["grad_norm"]) == {"head/kernel", "rest"}
    np.testing.assert_allclose(metrics["grad_norm"]["head/kernel"], np.linalg.norm(kernel), rtol=1e-3)
    np.testing.assert_allclose(metrics["grad_norm"]["rest"], optax.tree.norm(found), rtol=1e-3)


def test_the_moving_average_is_its_closed_form_and_is_what_is_measured():
    _, variables, training = prepare([{"match": ".*", **SGD}], backbone=Plain(), ema_decay=0.3)
    state, average = training.init_state(), variables["params"]
    for number in range(4):
        state, _ = training.step(state, training.frozen, a_batch(seed=number))
        decay = min(0.3, (1 + number) / (10 + number))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), average, state.params)
    for ours, closed in zip(
        jax.tree.leaves(training.variables(state)["params"]), jax.tree.leaves(average), strict=True
    ):
        np.testing.assert_allclose(ours, closed, atol=1e-6)


def test_the_pull_to_the_pretrained_values_adds_its_gradient_and_the_head_is_pulled_to_zero():
    free = prepare([{"match": ".*", **SGD}], backbone=Plain())[2]
    _, variables, pulled = prepare([{"match": ".*", "l2_sp": 0.5, **SGD}], backbone=Plain())
    start = jax.tree.map(lambda x: x + 0.25, variables["params"]["backbone"])
    moved = {"params": {**variables["params"], "backbone": start}}
    classifier, _ = build_classifier((Plain(), {"params": start}), 3, image_size=8)
    made = [
        StageTrainer(t.stage, classifier, moved, SPEC, StageLength(10), pretrained=variables["params"]["backbone"])
        for t in (free, pulled)
    ]
    (a, _), (b, _) = (gradients(training, moved["params"]) for training in made)
    for x, y in zip(jax.tree.leaves(a["backbone"]), jax.tree.leaves(b["backbone"]), strict=True):
        np.testing.assert_allclose(y - x, 0.5 * 0.25, atol=1e-4)
    np.testing.assert_allclose(
        b["head"]["kernel"] - a["head"]["kernel"], 0.5 * moved["params"]["head"]["kernel"], atol=1e-4
    )


def test_mixed_images_are_learned_from_and_soft_labels_are_taken_as_they_are():
    _, _, training = prepare(ALL, mixup=0.4, cutmix=1.0)
    _, found = run(training)
    assert all(np.isfinite(metrics["loss"]) for metrics in found)
    _, _, plain = prepare(ALL)
    batch = a_batch()
    soft = {**batch, "label": np.eye(3, dtype=np.float32)[batch["label"]]}
    hard_state, hard = plain.step(plain.init_state(), plain.frozen, batch)
    soft_state, same = plain.step(plain.init_state(), plain.frozen, soft)
    np.testing.assert_allclose(hard["loss"], same["loss"], rtol=1e-6)
    assert float(hard["correct"]) == float(same["correct"])
    for a, b in zip(jax.tree.leaves(hard_state.params), jax.tree.leaves(soft_state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_evaluation_counts_every_image_once_whatever_the_padding():
    classifier, variables, _ = prepare(ALL)
    step, batch = make_eval_step(classifier, SPEC), a_batch(5)
    padded = {name: np.concatenate([array, array[:3]]) for name, array in batch.items()}
    exact, logits = step(variables, {**batch, "weight": np.ones(5, np.float32)})
    filled, _ = step(variables, {**padded, "weight": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)})
    for name in ("loss", "correct", "count"):
        np.testing.assert_allclose(exact[name], filled[name], rtol=1e-6)
    assert float(exact["correct"]) == (np.asarray(logits).argmax(-1) == batch["label"]).sum()


def flops(jitted, *arguments):
    return jitted.lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("extra", [{}, {"clip_grad_norm": 1.0, "ema_decay": 0.99, "loss": "focal"}])
def test_a_frozen_step_costs_the_flops_of_forward_alone(tiny_clip, extra):
    classifier, variables = build_classifier(tiny_clip, 10)
    rules = [{"match": "head", "learning_rate": 1e-3}, {"match": ".*", "frozen": True}]
    stage = TrainStage.model_validate({"steps": 10, "partitions": rules, **extra})
    training = StageTrainer(stage, classifier, variables, tiny_clip.image_spec, StageLength(10))
    batch = {"image": np.zeros((32, 32, 32, 3), np.uint8), "label": np.zeros(32, np.int32)}
    step = flops(training.step, training.init_state(), training.frozen, batch)
    forward = flops(
        make_eval_step(classifier, tiny_clip.image_spec), variables, {**batch, "weight": np.ones(32, np.float32)}
    )
    assert step < 1.03 * forward


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_in_bfloat16_the_head_alone_multiplies_float32_matrices(remat):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    module = VisionTransformer(ViTConfig(**sizes, num_hidden_layers=3))
    _, _, training = prepare(ALL, backbone=module, compute_dtype="bfloat16", remat=remat)
    program = training.step.lower(training.init_state(), training.frozen, a_batch()).as_text()
    products = re.findall(r"dot_general .*: \(tensor<(\S+)>, tensor<(\S+)>\)", program)
    assert len(products) > 3 * 3 * 6
    of_float32 = {pair for pair in products if all(operand.endswith("f32") for operand in pair)}
    assert of_float32 == {("6x16xf32", "16x3xf32"), ("6x3xf32", "16x3xf32"), ("6x3xf32", "6x16xf32")}
