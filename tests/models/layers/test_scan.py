"""Blocks that are traced once compute what they compute one by one."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.errors import ModelError
from finetune.images.spec import ImageSpec
from finetune.models.classifier import build_classifier
from finetune.models.families.beit import BeitConfig, BeitModule
from finetune.models.layers.base import DropPath
from finetune.models.layers.scan import apply_run, split_runs
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.stage_trainer import StageTrainer

SPEC = ImageSpec(16, 16, None, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
BEIT = {"norm_after_pool": False, "layer_bias": True, "shared_bias": False, "bias_grid": 4, "resampling": "linear"}
SGD = {"optimizer": {"name": "sgd", "momentum": 0.0}, "learning_rate": 1e-2}
FROZEN = {"match": ".*", "frozen": True}
ALL = [{"match": ".*", **SGD}]
UPPER = [{"match": "head", **SGD}, {"match": "blocks[3:]", **SGD}, FROZEN]
LORA = [{"match": "head", **SGD}, {"match": ".*[qv]_proj/kernel", "lora": {"rank": 2}, **SGD}, FROZEN]
DORA = [
    {"match": "head", **SGD},
    {"match": "backbone/encoder/layers/[2-4]/mlp/.*kernel", "lora": {"rank": 2, "dora": True}, **SGD},
    FROZEN,
]
OPERATIONS = 8  # matrix products in a block: queries, keys, values, logits, average, output and two of the MLP


def trainer(rules, layers=6, module=None, config=None, **stage):
    module = module or VisionTransformer(ViTConfig(**SIZES, num_hidden_layers=layers, **(config or {})))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    classifier, variables = build_classifier(
        (module, variables), 3, head_init=rng.normal(0, 0.3, (16, 3)).astype(np.float32)
    )
    stage = TrainStage.model_validate({"steps": 10, "partitions": rules, "batch_size": 6, **stage})
    return StageTrainer(stage, classifier, variables, SPEC, StageLength(10), seed=7)


def batch():
    rng = np.random.default_rng(1)
    return {
        "image": rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, 6).astype(np.int32),
    }


def losses(training, steps=4):
    state, values = training.init_state(), []
    for _ in range(steps):
        state, metrics = training.step(state, training.frozen, batch())
        values.append(float(metrics["loss"]) / 6)
    return values


CASES = {
    "all": (ALL, {}, (6,)),
    "the upper half": (UPPER, {}, (3, 3)),
    "pooled from all tokens": (ALL, {"config": {"pooling": "mean"}}, (6,)),
    "recomputed": (UPPER, {"remat": True}, (3, 3)),
    "adapters": (LORA, {}, (6,)),
    "adapters in some blocks": (DORA, {}, (2, 3, 1)),
    "BEiT": (ALL, {"module": BeitModule(BeitConfig(**SIZES, **BEIT, num_hidden_layers=3))}, (3,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_losses_are_those_without_a_scan(case):
    rules, options, runs = case
    scanned = trainer(rules, scan_layers=True, **options)
    assert scanned._classifier.backbone.scan_layers == runs
    expected = losses(trainer(rules, **options))
    assert len(set(expected)) == 4
    np.testing.assert_allclose(losses(scanned), expected, rtol=1e-6)


def products(training):
    program = training.step.lower(jax.eval_shape(training.init_state), training.frozen, batch()).as_text()
    return len(re.findall(r"stablehlo\.dot_general", program))


@pytest.mark.slow
def test_the_program_of_a_tower_has_each_block_once_forward_and_once_backward():
    in_runs, one_by_one = (products(trainer(ALL, 24, scan_layers=scan)) for scan in (True, False))
    assert one_by_one - in_runs == 22 * 3 * OPERATIONS  # the last block computes fewer queries and is one of its own


@pytest.mark.slow
def test_frozen_blocks_have_no_backward_pass():
    upper, every = products(trainer(UPPER, scan_layers=True)), products(trainer(ALL, scan_layers=True))
    assert upper == every + OPERATIONS  # the frozen ones forward


@pytest.mark.slow
def test_the_frozen_blocks_are_still_found_to_be_computed_once():
    kept = [trainer(UPPER, scan_layers=scan).find_frozen_prefix(8).kept for scan in (True, False)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_training_goes_on_from_what_frozen_blocks_gave():
    scanned = trainer(UPPER, scan_layers=True)
    prefix = scanned.find_frozen_prefix(6)
    expected = losses(trainer(UPPER))
    kept = prefix.compute(scanned.frozen, batch()["image"])
    scanned.train_from(prefix)
    _, metrics = scanned.step(scanned.init_state(), scanned.frozen, {"kept": kept, "label": batch()["label"]})
    assert float(metrics["loss"]) / 6 == pytest.approx(expected[0], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rates", [{"dropout": 0.3}, {"attention_dropout": 0.3}, {"drop_path_rate": 0.6}])
def test_random_numbers_repeat_with_the_seed_and_differ_from_step_to_step(rates):
    still = [{"match": ".*", "optimizer": {"name": "sgd", "momentum": 0}, "learning_rate": 1e-30}]
    first, second = (losses(trainer(still, config=rates, scan_layers=True)) for _ in range(2))
    assert first == second
    assert len(set(first)) == 4


class Marking(nn.Module):
    """Marks its own column of an image's row, unless stochastic depth drops the branch."""

    drop_path_rate: float

    def setup(self):
        self.column = self.param("column", nn.initializers.zeros, (4,))
        self.drop_path = DropPath(self.drop_path_rate)

    def __call__(self, rows):
        return rows + self.drop_path(jnp.broadcast_to(self.column, rows.shape), deterministic=False)


class Tower(nn.Module):
    rates: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)

    def setup(self):
        self.blocks = [Marking(rate) for rate in self.rates]

    def __call__(self, rows):
        for run in split_runs(self.blocks, (4,)):
            rows = apply_run(run, rows, lambda block, rows: block(rows), random=True)
        return rows


@pytest.mark.slow
def test_each_block_has_its_own_rate_of_stochastic_depth_and_draws_of_its_own():
    params = {f"blocks_{i}": {"column": np.eye(4, dtype=np.float32)[i]} for i in range(4)}
    rows = jax.jit(lambda key: Tower().apply({"params": params}, jnp.zeros((20_000, 4)), rngs={"dropout": key}))(
        jax.random.key(0)
    )
    kept = np.asarray(rows) > 0
    np.testing.assert_allclose(kept.mean(axis=0), [1, 0.8, 0.6, 0.4], atol=0.015)  # four standard deviations
    np.testing.assert_allclose(np.asarray(rows).mean(axis=0), 1, atol=0.04)
    assert np.abs(np.corrcoef(kept[:, 1:].T) - np.eye(3)).max() < 0.03


def test_the_tree_of_parameters_is_the_same():
    plain = VisionTransformer(ViTConfig(**SIZES, num_hidden_layers=2))
    image = jnp.zeros((1, 16, 16, 3))
    trees = [jax.eval_shape(m.init, jax.random.key(0), image) for m in (plain, plain.clone(scan_layers=(2,)))]
    assert trees[0] == trees[1]


class Pixels(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(16)(x.mean((1, 2)))


def test_a_backbone_without_such_blocks_is_named():
    with pytest.raises(ModelError, match="scan_layers: Pixels has no attribute 'scan_layers'"):
        trainer(ALL, module=Pixels(), scan_layers=True)
