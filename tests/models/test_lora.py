from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from finetune.errors import PartitionError
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.models.lora import adapted, init_adapters, merge_adapters

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
    gradients = jax.eval_shape(partial(jax.grad(loss), dtype=jnp.bfloat16), adapters, params, x)
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


@pytest.fixture(scope="module")
def transformer():
    """(loss of parameters, its parameters, its dense kernels, floating point operations of their gradient)."""
    config = ViTConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=4
    )
    model, images = VisionTransformer(config), jnp.ones((8, 32, 32, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    kernels = {
        path: leaf for path, leaf in flatten_dict(params).items() if path[0] == "encoder" and path[-1] == "kernel"
    }

    def loss_fn(params):
        return model.apply({"params": params}, images).pooler_output.sum()

    work = flops(lambda kernels: loss_fn(unflatten_dict(flatten_dict(params) | kernels)), kernels)
    return loss_fn, params, kernels, work


def flops(function, argument):
    lowered = jax.jit(jax.grad(function)).lower(argument)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).cost_analysis()["flops"]


@pytest.mark.parametrize("dora", [False, True])
def test_no_kernel_gradient_is_computed(transformer, dora):
    loss_fn, params, kernels, work = transformer
    adapters = init_adapters(unflatten_dict(kernels), rank=2, dora=dora, rng=jax.random.key(0))
    scales = {"/".join(path[:-1]): 1.0 for path in kernels}

    def of_adapters(adapters):
        with adapted(adapters, scales):
            return loss_fn(params)

    products = sum(2 * kernel.size for kernel in kernels.values()) * 8 * 65  # one for each token
    assert work - flops(of_adapters, adapters) > 0.6 * products  # what the adapters' own products leave of it


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


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("options", [{}, {"strides": 2, "padding": "VALID"}, {"use_bias": False, "padding": 0}])
def test_a_pointwise_convolution_computes_what_its_merged_kernel_computes(options, dora):
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 5, 7)), jnp.float32)
    network = nn.Sequential([nn.Conv(6, (1, 1), **options)])
    params = noise(network.init(jax.random.key(0), images)["params"], seed=1)
    adapters = init_adapters(kernels_of(params, "layers_0"), rank=2, dora=dora, rng=jax.random.key(1))
    adapters = noise(adapters, seed=2)
    merged = merge_adapters(params, adapters, {"layers_0": 0.5})
    assert merged["layers_0"]["kernel"].shape == (1, 1, 7, 6)
    with adapted(adapters, {"layers_0": 0.5}):
        outputs = network.apply({"params": params}, images)
    assert np.abs(outputs - network.apply({"params": params}, images)).max() > 0.1
    np.testing.assert_allclose(outputs, network.apply({"params": merged}, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"feature_group_count": 7}, {"padding": 1}])
def test_a_convolution_that_is_no_dense_layer_at_each_position_is_refused(options):
    images = jnp.ones((1, 4, 4, 7))
    network = nn.Sequential([nn.Conv(7, (1, 1), **options)])
    params = network.init(jax.random.key(0), images)["params"]
    adapters = init_adapters(kernels_of(params, "layers_0"), rank=1, dora=False, rng=jax.random.key(0))
    with pytest.raises(PartitionError, match=r"layers_0: no dense layer"), adapted(adapters, {"layers_0": 1.0}):
        network.apply({"params": params}, images)


class Doubled(nn.Dense):
    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * super().__call__(x)


def test_a_subclass_that_computes_otherwise_is_refused_rather_than_adapted_twice(x):
    network = nn.Sequential([Doubled(7)])
    params = network.init(jax.random.key(0), x)["params"]
    adapters = init_adapters(kernels_of(params, "layers_0"), rank=1, dora=False, rng=jax.random.key(0))
    with pytest.raises(PartitionError, match=r"layers_0: no dense layer"), adapted(adapters, {"layers_0": 1.0}):
        network.apply({"params": params}, x)


class Projection(nn.Dense):
    """A dense layer with a second method."""

    def back(self, y: jax.Array) -> jax.Array:
        return y @ self.variables["params"]["kernel"].T


class Tied(nn.Module):
    """Its layer ``wrapped`` has the path of ``inner``, whose scope it shares."""

    def setup(self) -> None:
        self.inner = Wrapper()
        self.projection = Projection(7)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.inner(x)

    def back_and_forth(self, x: jax.Array) -> jax.Array:
        return self.projection.back(self.projection(x))


class Wrapper(nn.Module):
    def setup(self) -> None:
        self.wrapped = nn.Dense(7)
        nn.share_scope(self, self.wrapped)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.wrapped(x) + 1


def one_adapter(module, x, **options):
    """Parameters, adapters other than fresh ones, and the merged parameters."""
    model = Tied()
    params = noise(model.init(jax.random.key(0), x, **options)["params"], seed=1)
    adapters = init_adapters(kernels_of(params, module), rank=2, dora=False, rng=jax.random.key(1))
    adapters = noise(adapters, seed=2)
    return model, params, adapters, merge_adapters(params, adapters, {module: 0.5})


def test_a_layer_that_shares_its_parents_scope_is_adapted_once(x):
    model, params, adapters, merged = one_adapter("inner", x)
    with adapted(adapters, {"inner": 0.5}):
        y = model.apply({"params": params}, x)
    np.testing.assert_allclose(y, model.apply({"params": merged}, x), rtol=1e-5, atol=1e-5)


def test_other_methods_than_call_compute_with_the_plain_kernel(x):
    model, params, adapters, merged = one_adapter("projection", x, method="back_and_forth")
    with adapted(adapters, {"projection": 0.5}):
        y = model.apply({"params": params}, x, method="back_and_forth")
    forth = x @ merged["projection"]["kernel"] + merged["projection"]["bias"]
    np.testing.assert_allclose(y, forth @ params["projection"]["kernel"].T, rtol=1e-5, atol=1e-4)


def test_interceptors_around_it_see_each_call_once_with_the_adapted_values(params, x):
    adapters, seen = noise(fresh(params), seed=2), {}

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            seen.setdefault("/".join(context.module.path), []).append(result)
        return result

    merged = merge_adapters(params, adapters, SCALES)
    _, expected = Network().apply({"params": merged}, x, capture_intermediates=True, mutable=["intermediates"])
    with nn.intercept_methods(record), adapted(adapters, SCALES):
        Network().apply({"params": params}, x)
    assert {path: len(results) for path, results in seen.items()} == dict.fromkeys(["", "block", *SCALES, "head"], 1)
    for path, results in seen.items():
        value = flatten_dict(expected["intermediates"], sep="/")[f"{path}/__call__".lstrip("/")]
        np.testing.assert_allclose(results[0], value[0], rtol=1e-5, atol=1e-5)


def test_adapters_of_one_model_may_be_given_by_two_nested_contexts(params, x):
    adapters = noise(fresh(params), seed=2)
    up, down = ({"block": {name: adapters["block"][name]}} for name in ("up", "down"))
    with adapted(up, SCALES), adapted(down, SCALES):
        y = Network().apply({"params": params}, x)
    np.testing.assert_array_equal(y, forward(params, adapters, x))


def test_the_models_own_error_is_not_hidden_by_layers_that_were_not_reached(params):
    with pytest.raises(ZeroDivisionError), adapted(fresh(params), SCALES):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("path", "shape"), [(("conv", "kernel"), (3, 3, 8, 8)), (("fc", "bias"), (8,)), (("embed", "embedding"), (8, 8))]
)
def test_only_kernels_of_dense_layers_and_pointwise_convolutions_have_adapters(path, shape):
    with pytest.raises(PartitionError, match=rf"{'/'.join(path)}.*\({shape[0]},.*dense layer"):
        init_adapters(unflatten_dict({path: jnp.zeros(shape)}), rank=1, dora=False, rng=jax.random.key(0))


def test_a_rank_above_that_of_the_kernel_is_an_error():
    with pytest.raises(PartitionError, match=r"rank 5 .*head/kernel \(64, 4\)"):
        init_adapters({"head": {"kernel": jnp.zeros((64, 4))}}, rank=5, dora=False, rng=jax.random.key(0))


def test_dora_refuses_columns_without_a_direction():
    head = {"head": {"kernel": jnp.zeros((8, 3))}}
    with pytest.raises(PartitionError, match=r"head/kernel has columns of zeros"):
        init_adapters(head, rank=1, dora=True, rng=jax.random.key(0))
