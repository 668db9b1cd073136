from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.models.heads import KnnConfig, TipAdapterConfig

KNN, TIP_ADAPTER = KnnConfig(size=7, k=3), TipAdapterConfig(size=7, embedding=4)


@pytest.mark.parametrize("config", [KNN, TIP_ADAPTER])
def test_a_configuration_is_made_again_from_its_plain_values(config):
    assert type(config)(**asdict(config)) == config
    assert {type(value) for value in asdict(config).values()} <= {int, float}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (KNN, {"memory": {"keys": (7, 5), "labels": (7,)}}),
        (
            TIP_ADAPTER,
            {
                "params": {
                    "projection": (5, 4),
                    "text": (4, 3),
                    "keys": (7, 4),
                    "scale": (),
                    "alpha": (),
                    "beta": (),
                },
                "memory": {"labels": (7,)},
            },
        ),
    ],
)
def test_shapes_are_known_without_features(config, expected):
    features = jax.ShapeDtypeStruct((2, 5), jnp.bfloat16)
    logits, variables = jax.eval_shape(lambda x: config.build(3).init_with_output(jax.random.key(0), x), features)
    assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)
    assert jax.tree.map(lambda leaf: leaf.shape, variables) == expected
    assert variables["memory"]["labels"].dtype == jnp.int32


@pytest.mark.parametrize("config", [KNN, TIP_ADAPTER])
def test_a_fresh_head_has_zeros_in_its_memory_and_finite_logits(config):
    logits, variables = config.build(3).init_with_output(jax.random.key(0), jnp.ones((2, 5)))
    assert not any(leaf.any() for leaf in jax.tree.leaves(variables["memory"]))
    assert jnp.isfinite(logits).all()


def test_tip_adapter_adds_the_similarities_of_each_classs_keys_to_clips_logits():
    rng = np.random.default_rng(0)
    shapes = {"projection": (5, 4), "text": (4, 3), "keys": (7, 4)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    features, labels = rng.normal(size=(6, 5)), np.array([0, 2, 2, 0, 0, 2, 2])
    params = {**arrays, "scale": np.array(50.0), "alpha": np.array(2.5), "beta": np.array(1.5)}
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"params": params})
    logits = TIP_ADAPTER.build(3).apply({**variables, "memory": {"labels": jnp.asarray(labels)}}, features)

    f = features @ arrays["projection"]
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    expected = 50 * f @ arrays["text"]
    for key, label in zip(arrays["keys"], labels, strict=True):  # not of unit length: fine-tuned keys need not be
        expected[:, label] += 2.5 * np.exp(-1.5 * (1 - f @ key))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_tip_adapter_has_finite_gradients_for_features_of_zero():
    variables = TIP_ADAPTER.build(3).init(jax.random.key(0), jnp.ones((2, 5)))
    params, memory = variables["params"], {"memory": variables["memory"]}

    def total(params):
        return TIP_ADAPTER.build(3).apply({"params": params, **memory}, jnp.zeros((2, 5))).sum()

    assert all(jnp.isfinite(gradient).all() for gradient in jax.tree.leaves(jax.grad(total)(params)))
