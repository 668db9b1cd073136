import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.errors import ModelError
from finetune.models.layers.base import DropPath, activation

X = np.linspace(-4, 4, 41)
GELU = X * np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in X])
TANH = X * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)))
CURVES = {
    "gelu": GELU,
    "gelu_new": TANH,
    "gelu_pytorch_tanh": TANH,
    "quick_gelu": X / (1 + np.exp(-1.702 * X)),
    "relu": np.maximum(X, 0),
    "silu": X / (1 + np.exp(-X)),
    "tanh": np.tanh(X),
}


@pytest.mark.parametrize("name", CURVES)
def test_each_activation_is_its_closed_form(name):
    np.testing.assert_allclose(activation(name)(jnp.asarray(X, jnp.float32)), CURVES[name], atol=2e-6)


def test_an_unknown_activation_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"hidden_act.*'glu'.*gelu, .*quick_gelu"):
        activation("glu")


def test_drop_path_drops_whole_images_and_scales_the_others():
    x = jnp.ones((400, 2, 2, 3))
    y = DropPath(0.25).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    images = np.asarray(y).reshape(400, -1)
    assert (images == images[:, :1]).all()
    np.testing.assert_allclose(np.unique(images), [0, 1 / 0.75], rtol=1e-6)
    assert 60 < (images[:, 0] == 0).sum() < 140
