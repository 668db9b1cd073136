"""The transformer's own parts that no reference checkpoint shows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.models.layers.transformer import EncoderLayer
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig

SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


def config(blocks, **changes):
    return ViTConfig(**SIZES, num_hidden_layers=blocks, **changes)


@pytest.fixture
def tokens() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (64, 5, 8))


def scattered(module, *inputs):
    """Variables other than fresh ones."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize(("blocks", "rates"), [(1, [0.0]), (2, [0.0, 0.3]), (4, [0.0, 0.1, 0.2, 0.3])])
def test_the_rate_of_stochastic_depth_grows_from_zero_at_the_first_block_to_the_last(blocks, rates):
    bound = VisionTransformer(config(blocks, drop_path_rate=0.3)).bind({})
    np.testing.assert_allclose([layer.drop_path_rate for layer in bound.encoder.layers.layers], rates)


def test_a_branch_is_dropped_for_a_whole_image_or_scaled_up(tokens):
    layer = EncoderLayer(config(2, layer_scale=True), drop_path_rate=0.25)
    variables = layer.init(jax.random.key(0), tokens, None, None, False)
    variables["params"] |= {"layer_scale1": jnp.full(8, 3.0), "layer_scale2": jnp.full(8, -2.0)}
    trained = layer.apply(variables, tokens, None, None, True, rngs={"dropout": jax.random.key(1)})

    def closed_form(first, second):
        bound = layer.bind(variables)
        inner = bound.layer_norm1(tokens)
        hidden = tokens + first * 3 * bound.self_attn(inner, inner, None, False)
        return hidden + second * -2 * bound.mlp(bound.layer_norm2(hidden))

    cases = [closed_form(*factors) for factors in itertools.product([0, 4 / 3], repeat=2)]
    apart = np.array([np.abs(trained - case).max((1, 2)) for case in cases])
    assert apart.min(0).max() < 1e-5
    kept = np.bincount(apart.argmin(0), minlength=4) / len(tokens)
    np.testing.assert_allclose(kept, [1 / 16, 3 / 16, 3 / 16, 9 / 16], atol=0.15)
    np.testing.assert_allclose(layer.apply(variables, tokens, None, None, False), closed_form(1, 1), atol=1e-5)


def test_stochastic_depth_changes_training_alone(images):
    plain, deep = (VisionTransformer(config(2, drop_path_rate=rate)) for rate in (0.0, 0.9))
    variables = scattered(plain, images[:, :16, :16])
    pixels = images[:, :16, :16]
    expected = plain.apply(variables, pixels).pooler_output
    np.testing.assert_array_equal(deep.apply(variables, pixels).pooler_output, expected)
    np.testing.assert_array_equal(plain.apply(variables, pixels, train=True).pooler_output, expected)
    trained = deep.apply(variables, pixels, train=True, rngs={"dropout": jax.random.key(0)}).pooler_output
    assert np.abs(trained - expected).max() > 0.01
