"""The parts of the vision transformer that no reference checkpoint shows."""

import jax
import numpy as np
import pytest

from finetune.models.layers.vision_transformer import AttentionPool, VisionEmbeddings, VisionTransformer, ViTConfig

SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def config(**changes):
    return ViTConfig(**SIZES, image_size=16, patch_size=8, **changes)


def scattered(module):
    """The module, its variables other than fresh ones, and images."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 16, 16, 3)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return module, jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes), images


@pytest.mark.parametrize(("with_prefix", "first"), [(True, 0), (False, 3)])
def test_attention_pooling_reads_the_tokens_in_front_of_the_patches_or_leaves_them_out(with_prefix, first):
    pooling = config(pooling="attention", register_tokens=2, pool_prefix=with_prefix)
    module, variables, images = scattered(VisionTransformer(pooling))
    output = jax.jit(module.apply)(variables, images)
    read = output.last_hidden_state[:, first:]
    pooled = AttentionPool(pooling).apply({"params": variables["params"]["pooler"]}, read, False)
    np.testing.assert_allclose(output.pooler_output, pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("registers_too", [True, False])
def test_registers_have_positions_of_their_own_or_none(registers_too):
    module, variables, images = scattered(VisionEmbeddings(config(register_tokens=2, register_positions=registers_too)))
    table = variables["params"]["position_embedding"]["embedding"]
    without = module.clone(config=config(register_tokens=2, learned_positions=False))
    added = module.apply(variables, images) - without.apply(variables, images)
    expected = table if registers_too else np.insert(table, [1, 1], 0, axis=0)
    np.testing.assert_allclose(added, np.stack([expected, expected]), rtol=1e-4, atol=1e-5)
