import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.errors import ModelError
from finetune.models.layers.convolution import BatchNorm, ConvNorm, conv_norm_names, convolve, require_supported
from finetune.models.surgery import extract_submodule
from finetune.weights.names import apply_table

EPSILON = 1e-5


@pytest.fixture
def x() -> np.ndarray:
    """Float32 [4, 3, 5, 2] whose channels differ in mean and scale."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((4, 3, 5, 2)) * [3, 0.5] + [-7, 20]).astype(np.float32)


@pytest.fixture
def variables() -> dict:
    rng = np.random.default_rng(1)
    draw = lambda: rng.uniform(0.5, 1.5, 2).astype(np.float32)  # noqa: E731
    return {"params": {"scale": draw(), "bias": draw()}, "batch_stats": {"mean": draw(), "var": draw()}}


@pytest.mark.parametrize(
    ("stride", "kernel", "padding", "dtype"),
    [
        ((1, 1), (3, 3), "SAME", jnp.float32),
        ((2, 2), (3, 3), "SAME", jnp.bfloat16),
        ((2, 2), (3, 3), ((0, 1), (2, 3)), jnp.float32),
        ((2, 1), (5, 2), "VALID", jnp.float32),
        ((1, 1), (1, 1), ((1, 1), (1, 1)), jnp.float32),
    ],
)
def test_a_depthwise_convolution_and_its_gradients_are_xlas(stride, kernel, padding, dtype):
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 4), dtype)
    weights = jax.random.normal(jax.random.key(1), (*kernel, 1, 4), dtype)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}

    def run(function):
        @jax.jit
        def loss(*arguments):
            result = function(*arguments, stride, padding, **options)
            return jnp.square(result.astype(jnp.float32)).sum(), result

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, weights)

    tolerance = 1e-5 if dtype == jnp.float32 else 0.05  # of bfloat16 sums that are rounded at each step
    for ours, xlas in zip(
        jax.tree.leaves(run(convolve)), jax.tree.leaves(run(jax.lax.conv_general_dilated)), strict=True
    ):
        assert ours.dtype == xlas.dtype
        ours, xlas = np.asarray(ours, np.float32), np.asarray(xlas, np.float32)
        np.testing.assert_allclose(ours, xlas, rtol=tolerance, atol=tolerance * np.abs(xlas).max())


@pytest.mark.parametrize("options", [{"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2)}])
def test_dilated_convolutions_are_xlas_own(options):
    x, weights = jnp.ones((1, 9, 8, 4)), jnp.ones((3, 3, 1, 4))
    options |= {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}
    jaxpr = jax.make_jaxpr(lambda x, w: convolve(x, w, (1, 1), ((1, 1), (1, 1)), **options))(x, weights)
    assert [equation.primitive.name for equation in jaxpr.eqns] == ["conv_general_dilated"]


def normalized(x, mean, var, params):
    return (x - mean) / np.sqrt(var + EPSILON) * params["scale"] + params["bias"]


def train_step(module, variables, x):
    return module.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])


def test_evaluation_normalizes_with_the_running_statistics(x, variables):
    expected = normalized(x, variables["batch_stats"]["mean"], variables["batch_stats"]["var"], variables["params"])
    np.testing.assert_allclose(BatchNorm(2).apply(variables, x), expected, rtol=1e-5, atol=1e-5)


def test_training_normalizes_with_the_mean_and_biased_variance_of_the_batch(x, variables):
    y, _ = train_step(BatchNorm(2), variables, x)
    expected = normalized(x, x.mean((0, 1, 2)), x.var((0, 1, 2)), variables["params"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.9, 0.997])
def test_training_moves_the_running_statistics_towards_the_mean_and_unbiased_variance(x, variables, momentum):
    _, updated = train_step(BatchNorm(2, momentum=momentum), variables, x)
    old = variables["batch_stats"]
    mean = momentum * old["mean"] + (1 - momentum) * x.mean((0, 1, 2))
    var = momentum * old["var"] + (1 - momentum) * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], var, rtol=1e-5)


def test_training_keeps_running_statistics_that_are_not_mutable(x, variables):
    y = BatchNorm(2).apply(variables, jnp.asarray(x), train=True)
    np.testing.assert_array_equal(y, train_step(BatchNorm(2), variables, x)[0])


def test_initialization_leaves_the_running_statistics_at_zero_and_one(x):
    fresh = BatchNorm(2).init(jax.random.key(0), jnp.asarray(x), train=True)
    np.testing.assert_array_equal(fresh["batch_stats"]["mean"], [0, 0])
    np.testing.assert_array_equal(fresh["batch_stats"]["var"], [1, 1])


def test_the_tree_is_that_of_flax(x):
    ours = BatchNorm(2).init(jax.random.key(0), jnp.asarray(x))
    flax = nn.BatchNorm(use_running_average=True).init(jax.random.key(0), jnp.asarray(x))
    assert jax.tree.structure(ours) == jax.tree.structure(flax)


def test_statistics_are_float32_where_the_network_computes_in_bfloat16(x, variables):
    half = jnp.asarray(x, jnp.bfloat16)
    y, updated = train_step(BatchNorm(2, dtype=jnp.bfloat16), variables, half)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(half.astype(jnp.float32))
    mean = 0.9 * variables["batch_stats"]["mean"] + 0.1 * exact.mean((0, 1, 2))
    assert updated["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(updated["batch_stats"]["mean"], mean, rtol=1e-6)


def test_the_variance_is_exact_where_the_mean_is_large(variables):
    x = np.random.default_rng(2).standard_normal((64, 4, 4, 2)).astype(np.float32) + 3000
    _, updated = train_step(BatchNorm(2, momentum=0.0), variables, x)
    np.testing.assert_allclose(updated["batch_stats"]["var"], x.astype(np.float64).var((0, 1, 2), ddof=1), rtol=1e-4)


def test_a_batch_of_one_position_has_no_variance(variables):
    y, updated = train_step(BatchNorm(2, momentum=0.0), variables, np.full((1, 1, 1, 2), 5, np.float32))
    np.testing.assert_allclose(y.reshape(2), variables["params"]["bias"], atol=1e-3)
    np.testing.assert_array_equal(updated["batch_stats"]["var"], [0, 0])


def test_running_statistics_come_along_with_an_extracted_part(x):
    conv_norm = ConvNorm(6, 3)
    variables = conv_norm.init(jax.random.key(0), jnp.asarray(x))
    norm, parts = extract_submodule(conv_norm, variables, "norm")
    assert isinstance(norm, BatchNorm)
    assert jax.tree.map(jnp.shape, parts) == {
        "params": {"scale": (6,), "bias": (6,)},
        "batch_stats": {"mean": (6,), "var": (6,)},
    }


def convolved(x, kernel, stride, low):
    """A convolution of [N, H, W, C] by its definition; ``low`` zeros stand at the top and left, enough at the end."""
    size, height, width = kernel.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    padded = np.pad(x, ((0, 0), (low, size), (low, size), (0, 0)))
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i, j in np.ndindex(height, width):
        window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
        y[:, i, j] = np.tensordot(window, kernel, 3)
    return y


@pytest.mark.parametrize(
    ("size", "same", "low"),
    [(6, False, 1), (7, False, 1), (6, True, 0), (7, True, 1)],  # SAME pads an even edge at its end alone
)
def test_a_strided_convolution_pads_as_pytorch_does_or_as_tensorflow_does(size, same, low):
    x = np.random.default_rng(3).standard_normal((2, size, size, 3)).astype(np.float32)
    module = ConvNorm(4, 3, stride=2, same=same, epsilon=0.0)
    variables = module.init(jax.random.key(0), jnp.asarray(x))
    expected = convolved(x, np.asarray(variables["params"]["conv"]["kernel"]), 2, low)
    np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-5)


def test_the_names_of_a_pytorch_convolution_and_norm_fill_a_conv_norm():
    shapes = {"weight": (4,), "bias": (4,), "running_mean": (4,), "running_var": (4,), "num_batches_tracked": ()}
    tensors = {"a.3.conv.weight": np.zeros((4, 2, 3, 3))} | {f"a.3.bn.{k}": np.zeros(s) for k, s in shapes.items()}
    named = apply_table(tensors, conv_norm_names(r"a\.(\d)\.conv", r"a\.(\d)\.bn", r"blocks_\1"))
    variables = ConvNorm(4, 3).init(jax.random.key(0), jnp.zeros((1, 5, 5, 2)))
    wanted = {tuple(k.key for k in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(variables)}
    assert {(k[0], *k[2:]): leaf.shape for k, leaf in named.leaves.items()} == wanted
    assert {k[1] for k in named.leaves} == {"blocks_3"}
    assert named.unknown == ()


def test_an_option_with_another_value_is_refused_by_name():
    require_supported({"output_stride": 32, "other": 1}, {"output_stride": 32})
    with pytest.raises(ModelError, match=r"output_stride: only 32 is supported; received 16"):
        require_supported({"output_stride": 16}, {"output_stride": 32})
