from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from finetune.errors import PartitionError
from finetune.models.lora import adapted, init_adapters, merge_adapters
from finetune.models.transformer import VisionTransformer, ViTConfig

SCALES = {"block/up": 2.0, "block/down": 0.5}


class Block(nn.Module):
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.gelu(nn.Dense(12, dtype=self.dtype, name="up")(x))
        return nn.Dense(5, use_bias=False, dtype=self.dtype, name="down")(x)


class Network(nn.Module):
    """Two adapted layers, with and without a bias, and a head that is not."""

    dtype: Any = None
    remat: bool = False

    def setup(self) -> None:
        self.block = (nn.remat(Block) if self.remat else Block)(self.dtype)
        self.head = nn.Dense(3, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.block(x))


def noise(tree, seed, size=0.3):
    """The tree with other numbers everywhere, biases and ``lora_b`` included."""
    leaves, treedef = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    draw = [jnp.asarray(leaf + size * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(treedef, draw)


def kernels_of(params, *modules):
    return unflatten_dict({(*m.split("/"), "kernel"): flatten_dict(params, sep="/")[f"{m}/kernel"] for m in modules})


def fresh(params, dora=False):
    return init_adapters(kernels_of(params, *SCALES), rank=2, dora=dora, rng=jax.random.key(1))


def forward(params, adapters, x, **options):
    with adapted(adapters, SCALES):
        return Network(**options).apply({"params": params}, x)


def loss(adapters, params, x, **options):
    return jnp.square(forward(params, adapters, x, **options)).sum()


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 6, 7)), jnp.float32)


@pytest.fixture(scope="module")
def params(x) -> Any:
    return noise(Network().init(jax.random.key(0), x)["params"], seed=1)


def test_fresh_adapters_are_kaiming_uniform_and_zero():
    kernel = jnp.asarray(np.random.default_rng(3).standard_normal((400, 30)), jnp.bfloat16)
    adapter = init_adapters({"fc": {"kernel": kernel}}, rank=20, dora=True, rng=jax.random.key(0))["fc"]
    a = np.asarray(adapter["lora_a"])
    assert a.shape == (400, 20)
    assert 0.99 / 20 < np.abs(a).max() <= 1 / 20  # uniform within 1 / sqrt(in)
    np.testing.assert_allclose(a.std(), 1 / 20 / np.sqrt(3), rtol=0.03)
    np.testing.assert_array_equal(adapter["lora_b"], np.zeros((20, 30)))
    np.testing.assert_allclose(adapter["magnitude"], np.linalg.norm(np.float32(kernel), axis=0), rtol=1e-6)
    assert {leaf.dtype for leaf in adapter.values()} == {jnp.dtype("float32")}


def test_a_kernels_adapter_does_not_depend_on_which_others_are_adapted(params):
    both = fresh(params)["block"]
    alone = init_adapters(kernels_of(params, "block/down"), rank=2, dora=False, rng=jax.random.key(1))["block"]
    np.testing.assert_array_equal(both["down"]["lora_a"], alone["down"]["lora_a"])
    same = init_adapters({n: {"kernel": jnp.ones((7, 7))} for n in "ab"}, rank=2, dora=False, rng=jax.random.key(1))
    assert not np.array_equal(same["a"]["lora_a"], same["b"]["lora_a"])


def test_fresh_lora_changes_no_bit_of_the_output(params, x):
    plain = Network().apply({"params": params}, x)
    np.testing.assert_array_equal(forward(params, fresh(params), x), plain)


def test_fresh_dora_changes_nothing(params, x):
    plain = Network().apply({"params": params}, x)
    np.testing.assert_allclose(forward(params, fresh(params, dora=True), x), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_merged_kernels_are_the_papers(params, dora):
    adapters = noise(fresh(params, dora), seed=2)
    merged = merge_adapters(params, adapters, SCALES)
    for module, scale in SCALES.items():
        name = module.split("/")[1]
        adapter = jax.tree.map(np.float64, adapters["block"][name])
        expected = np.float64(params["block"][name]["kernel"]) + scale * adapter["lora_a"] @ adapter["lora_b"]
        if dora:
            expected *= adapter["magnitude"] / np.linalg.norm(expected, axis=0)
        np.testing.assert_allclose(merged["block"][name]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert merged["head"]["kernel"] is params["head"]["kernel"]
    assert merged["block"]["up"]["bias"] is params["block"]["up"]["bias"]


@pytest.mark.parametrize("dora", [False, True])
def test_adapted_layers_compute_what_the_merged_kernels_compute(params, x, dora):
    adapters = noise(fresh(params, dora), seed=2)
    expected = Network().apply({"params": merge_adapters(params, adapters, SCALES)}, x)
    assert np.abs(expected - Network().apply({"params": params}, x)).max() > 1
    np.testing.assert_allclose(forward(params, adapters, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_are_the_chain_rule_through_the_merged_kernel_with_its_norm_held_constant(params, x, dora):
    adapters = noise(fresh(params, dora), seed=2)
    gradients = jax.jit(jax.grad(loss))(adapters, params, x)
    merged = merge_adapters(params, adapters, SCALES)
    through = jax.grad(lambda p: jnp.square(Network().apply({"params": p}, x)).sum())(merged)
    for module, scale in SCALES.items():
        name = module.split("/")[1]
        a, b = adapters["block"][name]["lora_a"], adapters["block"][name]["lora_b"]
        direction, found = through["block"][name]["kernel"], gradients["block"][name]
        if dora:
            combined = params["block"][name]["kernel"] + scale * a @ b
            norms, magnitude = jnp.linalg.norm(combined, axis=0), adapters["block"][name]["magnitude"]
            close(found["magnitude"], (direction * combined).sum(0) / norms)
            direction = direction * magnitude / norms
        close(found["lora_a"], scale * direction @ b.T)
        close(found["lora_b"], scale * a.T @ direction)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dora", [False, True])
def test_rematerialized_blocks_give_the_same_gradients(params, x, dora):
    adapters = noise(fresh(params, dora), seed=2)
    expected = jax.jit(jax.grad(loss))(adapters, params, x)
    rematerialized = jax.jit(jax.grad(lambda adapters: loss(adapters, params, x, remat=True)))(adapters)
    jax.tree.map(close, rematerialized, expected)


def test_a_jitted_scan_over_parts_of_a_batch_sums_the_same_gradients(params, x):
    adapters = noise(fresh(params), seed=2)

    @jax.jit
    def summed(adapters):
        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(adapters, params, part)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, adapters), x)[0]

    jax.tree.map(close, summed(adapters), jax.grad(loss)(adapters, params, x))


@pytest.mark.parametrize("dora", [False, True])
def test_a_network_in_bfloat16_stays_in_bfloat16_and_its_adapters_in_float32(params, x, dora):
    adapters = noise(fresh(params, dora), seed=2)
    half = forward(params, adapters, x, dtype=jnp.bfloat16)
    exact = forward(params, adapters, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), exact, atol=0.02 * np.abs(exact).max())
    gradients = jax.grad(loss)(adapters, params, x, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_bfloat16_does_not_round_away_what_doras_magnitudes_learn(x):
    network = nn.Sequential([nn.Dense(64, use_bias=False, dtype=jnp.bfloat16)])
    params = network.init(jax.random.key(0), x)["params"]
    adapters = init_adapters(params, rank=1, dora=True, rng=jax.random.key(0))
    adapters["layers_0"]["magnitude"] *= 1.003
    with adapted(adapters, {"layers_0": 1.0}):
        longer = np.float32(network.apply({"params": params}, x))
    before = np.float32(network.apply({"params": params}, x))
    np.testing.assert_allclose(((longer - before) * before).sum() / np.square(before).sum(), 0.003, rtol=0.3)


@pytest.mark.parametrize("dora", [False, True])
def test_no_kernel_gradient_is_computed(dora):
    config = ViTConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=4
    )
    model, images = VisionTransformer(config), jnp.ones((8, 32, 32, 3))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    layers = flatten_dict(params["encoder"], sep="/")
    dense = [f"encoder/{path.removesuffix('/kernel')}" for path in layers if path.endswith("/kernel")]
    kernels = kernels_of(params, *dense)
    adapters = init_adapters(kernels, rank=2, dora=dora, rng=jax.random.key(0))

    def of_adapters(adapters):
        with adapted(adapters, dict.fromkeys(dense, 1.0)):
            return model.apply({"params": params}, images).pooler_output.sum()

    def of_kernels(kernels):
        flat = flatten_dict(params) | flatten_dict(kernels)
        return model.apply({"params": unflatten_dict(flat)}, images).pooler_output.sum()

    def flops(function, argument):
        return jax.jit(jax.grad(function)).lower(argument).compile().cost_analysis()["flops"]

    products = sum(2 * kernel.size for kernel in jax.tree.leaves(kernels)) * 8 * 65  # one for each token
    saved = flops(of_kernels, kernels) - flops(of_adapters, adapters)
    assert saved > 0.6 * products  # what the adapters' own products leave of it


def test_a_layer_that_is_never_called_is_an_error_that_names_it(params, x):
    adapters = fresh(params)
    adapters["block"]["upp"] = adapters["block"].pop("up")
    with pytest.raises(PartitionError, match=r"block/upp: no dense layer"), adapted(adapters, {"block/down": 1.0}):
        Network().apply({"params": params}, x)


def test_a_layer_that_is_not_dense_is_an_error_that_names_it(x):
    norm = nn.LayerNorm()
    adapters = init_adapters({"norm": {"kernel": jnp.ones((7, 7))}}, rank=1, dora=False, rng=jax.random.key(0))
    with pytest.raises(PartitionError, match=r"norm: no dense layer"), adapted(adapters, {"norm": 1.0}):
        nn.Sequential([norm]).init(jax.random.key(0), x)


class Doubled(nn.Dense):
    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * super().__call__(x)


def test_a_subclass_that_computes_otherwise_is_refused_rather_than_adapted_twice(x):
    network = nn.Sequential([Doubled(7)])
    params = network.init(jax.random.key(0), x)["params"]
    adapters = init_adapters(kernels_of(params, "layers_0"), rank=1, dora=False, rng=jax.random.key(0))
    with pytest.raises(PartitionError, match=r"layers_0: no dense layer"), adapted(adapters, {"layers_0": 1.0}):
        network.apply({"params": params}, x)


def test_the_models_own_error_is_not_hidden_by_layers_that_were_not_reached(params):
    with pytest.raises(ZeroDivisionError), adapted(fresh(params), SCALES):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("path", "shape"), [(("conv", "kernel"), (3, 3, 8, 8)), (("fc", "bias"), (8,)), (("embed", "embedding"), (8, 8))]
)
def test_only_dense_kernels_have_adapters(path, shape):
    with pytest.raises(PartitionError, match=rf"{'/'.join(path)}.*\({shape[0]},.*dense kernel"):
        init_adapters(unflatten_dict({path: jnp.zeros(shape)}), rank=1, dora=False, rng=jax.random.key(0))


def test_a_rank_above_that_of_the_kernel_is_an_error():
    with pytest.raises(PartitionError, match=r"rank 5 .*head/kernel \(64, 4\)"):
        init_adapters({"head": {"kernel": jnp.zeros((64, 4))}}, rank=5, dora=False, rng=jax.random.key(0))


def test_dora_refuses_columns_without_a_direction():
    head = {"head": {"kernel": jnp.zeros((8, 3))}}
    with pytest.raises(PartitionError, match=r"head/kernel has columns of zeros"):
        init_adapters(head, rank=1, dora=True, rng=jax.random.key(0))
