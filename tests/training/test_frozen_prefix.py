import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.images.spec import ImageSpec
from finetune.models.classifier import build_classifier, without_head
from finetune.models.families.resnet import ResNetConfig, ResNetModule
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.features import FeatureExtractor, head_input_prefix, logits_prefix
from finetune.training.frozen_prefix import find_frozen_prefix
from finetune.training.stage_trainer import StageTrainer
from finetune.trees import merge

SPEC = ImageSpec(32, 32, None, "bicubic", (0.5,) * 3, (0.25,) * 3)
HEAD = {"match": "head", "learning_rate": 0.1}
LAST = {"match": "blocks[-1]", "learning_rate": 0.1}
FROZEN = {"match": ".*", "frozen": True}
QUERIES = {"match": ".*/layers/1/.*q_proj/kernel", "learning_rate": 0.1}
TRANSFORMER = {
    "head": ([HEAD, FROZEN], {}),
    "the last block": ([HEAD, LAST, FROZEN], {}),
    "norms": ([HEAD, {"match": "norms", "learning_rate": 0.1}, FROZEN], {}),
    "adapters": ([HEAD, {**QUERIES, "lora": {"rank": 2}}, FROZEN], {}),
    "adapters with magnitudes": ([HEAD, {**QUERIES, "lora": {"rank": 2, "dora": True}}, FROZEN], {}),
    "frozen weights in bfloat16": ([HEAD, LAST, FROZEN], {"frozen_dtype": "bfloat16"}),
    "rematerialized blocks": ([HEAD, LAST, FROZEN], {"remat": True}),
    "a batch in parts": ([HEAD, LAST, FROZEN], {"grad_accum_steps": 2}),
    "a pull to the pretrained values": ([HEAD, {**LAST, "l2_sp": 0.1}, FROZEN], {}),
}
NETWORK = {
    "head": [HEAD, FROZEN],
    "the last block": [HEAD, LAST, FROZEN],
    "the last block, statistics frozen": [HEAD, {**LAST, "batch_norm": "frozen"}, FROZEN],
    "all statistics": [HEAD, {**FROZEN, "batch_norm": "update"}],
}


def quick_or_slow(case, quick):
    """All but one are left to CI."""
    return case if case == quick else pytest.param(case, marks=pytest.mark.slow)


def vit(**config):
    module = VisionTransformer(
        ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            **{"hidden_act": "quick_gelu", "image_size": 32, "patch_size": 8, "norm_after_pool": True, **config},
        )
    )
    return classifier(module)


def classifier(module):
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return build_classifier((module, variables), 10, head_init="lecun_normal", image_size=32)


@pytest.fixture(scope="module")
def transformer():
    return vit()


@pytest.fixture(scope="module")
def network():
    config = ResNetConfig(stem_sizes=(4,), hidden_sizes=(4, 8), inner_sizes=(4, 8), depths=(1, 1), bottleneck=False)
    return classifier(ResNetModule(config))


def trainer_of(model, partitions, **options):
    partitions = [rule if rule.get("frozen") else {"optimizer": "sgd", **rule} for rule in partitions]
    stage = TrainStage.model_validate({"steps": 3, "batch_size": 4, "partitions": partitions, **options})
    return StageTrainer(stage, *model, SPEC, StageLength(3), seed=3)


def a_batch(seed=0, size=4):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8), "label": rng.integers(0, 10, size)}


def trained(model, partitions, *, cached, **options):
    """Everything after three steps, and the last step's metrics."""
    trainer = trainer_of(model, partitions, **options)
    compute = None
    if cached:
        prefix = trainer.find_frozen_prefix(6)
        trainer.train_from(prefix)
        compute = jax.jit(prefix.compute)
    state, metrics = trainer.init_state(), None
    for seed in range(3):
        batch = a_batch(seed)
        if compute is not None:
            batch = {"kept": compute(trainer.frozen, batch["image"]), "label": batch["label"]}
        state, metrics = trainer.step(state, trainer.frozen, batch)
    return trainer.variables(state), metrics


def assert_same(one, other, tolerance=0.0):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", [quick_or_slow(case, "adapters") for case in TRANSFORMER])
def test_a_transformer_trained_from_what_its_frozen_part_keeps_is_the_same(transformer, case):
    partitions, options = TRANSFORMER[case]
    one, other = (trained(transformer, partitions, cached=cached, **options) for cached in (False, True))
    assert_same(one, other, 1e-6)  # XLA may fuse the last frozen operation with the first trained one


@pytest.mark.slow
def test_in_bfloat16_the_first_step_is_the_same_within_its_rounding(transformer):
    def first_step(cached):
        trainer, batch = trainer_of(transformer, [HEAD, LAST, FROZEN], compute_dtype="bfloat16"), a_batch()
        if cached:
            prefix = trainer.find_frozen_prefix(6)
            assert {kept.dtype.name for kept in prefix.kept} == {"bfloat16"}
            trainer.train_from(prefix)
            batch = {"kept": jax.jit(prefix.compute)(trainer.frozen, batch["image"]), "label": batch["label"]}
        return trainer.step(trainer.init_state(), trainer.frozen, batch)[1]

    assert_same(first_step(cached=False), first_step(cached=True), 2e-2)


@pytest.mark.parametrize("case", [quick_or_slow(case, "all statistics") for case in NETWORK])
def test_a_convolutional_network_is_the_same_statistics_included(network, case):
    one, other = (trained(network, NETWORK[case], cached=cached) for cached in (False, True))
    assert_same(one, other, 1e-6)


@pytest.mark.parametrize(
    ("partitions", "shapes"),
    [
        ([HEAD, FROZEN], [(32,)]),
        ([HEAD, LAST, FROZEN], [(17, 32)]),  # the residual stream alone: the norm behind it is computed again
        ([HEAD, {"match": "norms", "learning_rate": 0.1}, FROZEN], [(16, 32)]),  # embedded patches
    ],
)
def test_what_is_kept_has_as_few_bytes_as_can_be(transformer, partitions, shapes):
    kept = trainer_of(transformer, partitions).find_frozen_prefix(6).kept
    assert [array.shape for array in kept] == shapes


def test_a_step_from_what_is_kept_has_the_work_of_what_is_trained_alone(transformer):
    def flops(partitions, cached):
        trainer = trainer_of(transformer, partitions)
        batch = a_batch()
        if cached:
            prefix = trainer.find_frozen_prefix(6)
            trainer.train_from(prefix)
            batch = {"kept": jax.jit(prefix.compute)(trainer.frozen, batch["image"]), "label": batch["label"]}
        return trainer.step.lower(trainer.init_state(), trainer.frozen, batch).compile().cost_analysis()["flops"]

    assert flops([HEAD, FROZEN], cached=True) < 0.01 * flops([HEAD, FROZEN], cached=False)
    one_block = 4 * 17 * (4 * 32**2 + 2 * 32 * 64) * 2  # of four images: matrix products of one block, forward
    assert flops([HEAD, LAST, FROZEN], cached=True) < 3 * 1.5 * one_block


def test_dropout_and_stochastic_depth_of_frozen_blocks_stay_random():
    model = vit(dropout=0.5)
    trainer = trainer_of(model, [HEAD, LAST, FROZEN])
    prefix = trainer.find_frozen_prefix(6)
    whole = trainer_of(vit(), [HEAD, LAST, FROZEN]).find_frozen_prefix(6)
    assert prefix is None or [kept.shape for kept in prefix.kept] == [(16, 32)]  # nothing behind the first dropout
    assert [kept.shape for kept in whole.kept] == [(17, 32)]


@pytest.mark.parametrize("option", [{"mixup": 0.2}, {"cutmix": 1.0}, {"augment": {"random_erasing": {}}}])
def test_images_that_change_on_the_device_leave_nothing_to_keep(transformer, option):
    assert trainer_of(transformer, [HEAD, FROZEN], **option).find_frozen_prefix(6) is None


def test_a_model_that_is_trained_from_its_first_layer_leaves_nothing_to_keep(transformer):
    first = [HEAD, {"match": "embeddings|.*/patch_embedding/.*", "learning_rate": 0.1}, FROZEN]
    assert trainer_of(transformer, first).find_frozen_prefix(6) is None


WEIGHTS = np.ones((3, 5), np.float32)
MIXING = {
    "the batch's mean": lambda x: x - x.mean(0),
    "the batch's order": lambda x: x[::-1],
    "the next image": lambda x: jnp.concatenate([x[1:], x[:1]]),
    "sums along the batch": lambda x: jnp.cumsum(x, 0),
    "all pairs": lambda x: (x @ x.T)[:, :2],
    "ranks": lambda x: jnp.sort(x, 0),
    "rows in another order": lambda x: jnp.swapaxes(x.reshape(len(x), 5, 1), 0, 1).reshape(len(x), 5),
    "a loop over images": lambda x: jax.lax.scan(lambda carry, row: (carry + row, carry), jnp.zeros(5), x)[1],
}
SEPARATE = {
    "windows": lambda x: jnp.swapaxes(x.reshape(len(x), 5, 1), 1, 2).reshape(len(x) * 1, 5),
    "merged and split again": lambda x: jnp.tanh(x.reshape(-1)).reshape(len(x), 5),
    "order within an image": lambda x: jnp.sort(x[:, ::-1], 1),
    "a loop within an image": lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y), x),
    "nested functions": lambda x: jax.jit(jax.checkpoint(lambda y: jax.nn.relu(jax.nn.silu(y))))(x),
}


def split(between):
    """The prefix of a function that multiplies by frozen weights, does something, and multiplies by others."""

    def function(varying, frozen, images):
        features = images.astype(jnp.float32).mean((1, 2)) @ frozen
        return between(features) @ varying

    varying, image = (
        jnp.ones((2 if between is MIXING["all pairs"] else 5, 4)),
        jax.ShapeDtypeStruct((8, 8, 3), np.uint8),
    )
    return function, varying, find_frozen_prefix(function, varying, WEIGHTS, image, (4, 6))


@pytest.mark.parametrize("what", MIXING)
def test_values_that_mix_images_are_not_kept(what):
    function, varying, prefix = split(MIXING[what])
    images = a_batch()["image"][:, :8, :8]
    if prefix is not None:  # it ends before the images are mixed: at another batch, the kept values are the same
        others = np.concatenate([images[:1], 255 - images[1:]])
        one, other = (prefix.compute(WEIGHTS, jnp.asarray(x)) for x in (images, others))
        assert_same([x[:1] for x in one], [x[:1] for x in other])
        assert_same(prefix.resume(varying, WEIGHTS, one), function(varying, WEIGHTS, images), 1e-6)


@pytest.mark.parametrize(
    ("behind", "expected"), [(lambda features, factor: features * factor, [9]), (lambda features, _: features, [])]
)
def test_a_function_is_traced_for_a_batch_size_only_where_something_is_left_to_compute(behind, expected):
    traced, factor = [], jnp.float32(2.0)

    def function(factor, frozen, images):
        traced.append(len(images))
        return behind(images.astype(jnp.float32).mean((1, 2)) @ frozen, factor)

    prefix = find_frozen_prefix(function, factor, WEIGHTS, jax.ShapeDtypeStruct((8, 8, 3), np.uint8), (4, 6))
    traced.clear()
    for size in (4, 6, 9):
        kept = jnp.ones((size, 5), jnp.bfloat16)
        assert_same(prefix.resume(factor, WEIGHTS, [kept]), behind(kept.astype(jnp.float32), factor))
    assert traced == expected


@pytest.mark.parametrize("what", SEPARATE)
def test_values_of_each_image_alone_are_kept_whatever_computes_them(what):
    function, varying, prefix = split(SEPARATE[what])
    images = jnp.asarray(a_batch(size=7)["image"][:, :8, :8])
    assert prefix.bytes_per_image <= 20
    kept = prefix.compute(WEIGHTS, images)
    assert_same(prefix.resume(varying, WEIGHTS, kept), function(varying, WEIGHTS, images), 1e-6)
    gradients = jax.grad(lambda w: prefix.resume(w, WEIGHTS, kept).sum())(varying)
    assert_same(gradients, jax.grad(lambda w: function(w, WEIGHTS, images).sum())(varying), 1e-6)


class Own(nn.Module):
    """A module of one's own, with state that it updates."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), name="first")(x))
        x = nn.relu(nn.Conv(4, (3, 3), name="second")(x)).mean((1, 2))
        calls = self.variable("state", "calls", lambda: jnp.zeros(()))
        if train:
            calls.value += 1
        return x


def test_a_module_of_ones_own_needs_to_know_nothing_of_it():
    model = classifier(Own())
    partitions = [HEAD, {"match": "backbone/second/.*", "learning_rate": 0.1}, FROZEN]
    prefix = trainer_of(model, partitions).find_frozen_prefix(6)
    assert [kept.shape for kept in prefix.kept] == [(32, 32, 4)]
    assert_same(*(trained(model, partitions, cached=cached) for cached in (False, True)), 1e-6)


def test_probe_evaluation_and_training_of_the_head_share_their_features(transformer):
    module, variables = transformer
    trainer, frozen = trainer_of(transformer, [HEAD, FROZEN]), without_head(variables)
    prefixes = [
        (trainer.find_frozen_prefix(6), trainer.frozen),
        (head_input_prefix(module, variables, SPEC, 6), frozen),
        (logits_prefix(module, {"params": {"head": variables["params"]["head"]}}, frozen, SPEC, (6, 7)), frozen),
    ]
    assert len({FeatureExtractor(prefix, frozen, SPEC, 6).identity for prefix, frozen in prefixes}) == 1


def test_another_weight_another_identity(transformer):
    module, variables = transformer
    kernel = variables["params"]["backbone"]["embeddings"]["patch_embedding"]["kernel"]
    change = {"params": {"backbone": {"embeddings": {"patch_embedding": {"kernel": kernel.at[0, 0, 0, 0].add(1e-6)}}}}}
    identities = {
        FeatureExtractor(head_input_prefix(module, v, SPEC, 6), without_head(v), SPEC, 6).identity
        for v in (variables, merge(variables, change))
    }
    assert len(identities) == 2


@pytest.mark.slow
def test_rows_come_in_order_without_padding_in_the_dtype_asked_for(transformer):
    module, variables = transformer
    prefix, frozen = head_input_prefix(module, variables, SPEC, 4), without_head(variables)
    extractor = FeatureExtractor(prefix, frozen, SPEC, 4, "float16")
    batches = [a_batch(seed) for seed in range(2)]
    [first], [second] = extractor.blocks(batches, 7)
    assert (len(first), len(second), first.dtype) == (4, 3, np.float16)
    expected = module.apply(variables, SPEC.normalize(jnp.asarray(batches[1]["image"])), method="features")
    np.testing.assert_allclose(second, expected[:3], rtol=2e-3, atol=2e-3)
