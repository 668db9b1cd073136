"""What the convolutional families share: layers and their tensor names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError
from finetune.weights.names import Drop, Rename, Row, convolution

# For kernels in front of a ReLU (He et al. 2015, arXiv:1502.01852).
he_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Any,
    *,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """``jax.lax.conv_general_dilated`` as ``nn.Conv`` calls it, with depthwise convolutions made fast on CPUs.

    XLA runs those channel by channel there. A sum over the kernel's positions of shifted images is one loop instead,
    5 to 40 times as fast, and its gradient 2 to 9 times; values are float32 until the sum is complete.

    Args:
        x: [N, H, W, C].
        kernel: [height, width, C / groups, features].
    """
    depthwise = feature_group_count == x.shape[-1] == kernel.shape[-1]
    dilated = any(rate != 1 for key in ("lhs_dilation", "rhs_dilation") for rate in options.get(key) or ())
    if not depthwise or dilated or jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, feature_group_count=feature_group_count, **options
        )
    size = kernel.shape[:2]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
    spans = [
        range((length - edge) // stride * stride + 1)
        for length, edge, stride in zip(padded.shape[1:3], size, strides, strict=True)
    ]
    total: Any = 0.0
    for row, column in itertools.product(*map(range, size)):
        start = (0, row, column, 0)
        end = (len(x), row + len(spans[0]), column + len(spans[1]), x.shape[-1])
        shifted = jax.lax.slice(padded, start, end, (1, *strides, 1))
        total = total + shifted * kernel[row, column, 0].astype(jnp.float32)
    return total.astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe & Szegedy 2015, arXiv:1502.03167), [..., C] to [..., C] in the compute dtype.

    The variables are those of ``nn.BatchNorm``: ``scale`` and ``bias`` in params, ``mean`` and ``var`` in batch_stats,
    all float32 [C]. With ``train`` it normalizes with the batch's mean and biased variance and, where batch_stats is
    mutable, updates the running statistics with the batch's mean and unbiased variance, as PyTorch does and
    ``nn.BatchNorm`` does not. Without ``train`` it normalizes with the running statistics, or with the batch's where
    no running statistics are tracked.

    Attributes:
        features: C.
        momentum: decay of the running statistics, as in Flax; 1 - PyTorch's momentum.
        epsilon: added to the variance.
        affine: learn a scale and a bias.
        track: keep running statistics.
        dtype: of the output; the statistics are always float32.
    """

    features: int
    momentum: float = 0.9
    epsilon: float = 1e-5
    affine: bool = True
    track: bool = True
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        shape = (self.features,)
        if self.affine:
            self.scale = self.param("scale", nn.initializers.ones, shape)
            self.bias = self.param("bias", nn.initializers.zeros, shape)
        if self.track:
            self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
            self.var = self.variable("batch_stats", "var", jnp.ones, shape)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        running = self.track and not train
        mean, var = (self.mean.value, self.var.value) if running else self._batch_statistics(x)
        scale, bias = (self.scale, self.bias) if self.affine else (1.0, 0.0)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance of the batch, float32 [C] each; updates the running statistics if mutable."""
        x = x.astype(jnp.float32)
        positions = tuple(range(x.ndim - 1))
        mean = x.mean(positions)
        var = jnp.square(x - mean).mean(positions)  # not E[x^2] - E[x]^2, which cancels where the mean is large
        if self.track and self.is_mutable_collection("batch_stats") and not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            self.mean.value = self.momentum * self.mean.value + (1 - self.momentum) * mean
            self.var.value = self.momentum * self.var.value + (1 - self.momentum) * unbiased
        return mean, var


class ConvNorm(nn.Module):
    """A square convolution without bias, then BatchNorm: [N, H, W, C] to [N, H / stride, W / stride, features].

    Attributes:
        features: channels of the output.
        kernel: edge of the kernel.
        groups: number of channel groups; C for a depthwise convolution.
        same: pad like TensorFlow's SAME, which with a stride puts more zeros at the bottom and right; otherwise
            ``kernel // 2`` zeros on every side, as PyTorch models do.
        even: pad like SAME pads even sizes for a stride of 2, whatever the size is.
        momentum, epsilon: see BatchNorm.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    same: bool = False
    even: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        half = self.kernel // 2
        self.conv = nn.Conv(
            self.features,
            kernel_size=(self.kernel, self.kernel),
            strides=self.stride,
            padding="SAME" if self.same else [(half - 1, half)] * 2 if self.even else half,
            feature_group_count=self.groups,
            conv_general_dilated=convolve,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_init,
        )
        self.norm = BatchNorm(self.features, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.norm(self.conv(x), train)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2017, arXiv:1709.01507): scales each channel of [N, H, W, C] by a gate.

    The gates [N, C] come from the means over all positions, through two dense layers.

    Attributes:
        features: C.
        squeezed: width between the two layers.
        act: after the first layer.
        gate: after the second.
    """

    features: int
    squeezed: int
    act: Callable[[jax.Array], jax.Array] = jax.nn.relu
    gate: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.reduce = nn.Dense(self.squeezed, dtype=self.dtype, kernel_init=he_init)
        self.expand = nn.Dense(self.features, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        gates = self.gate(self.expand(self.act(self.reduce(x.mean(axis=(1, 2))))))
        return x * gates[:, None, None]


def divisible(size: float, divisor: int = 8, minimum: int = 8, limit: float = 0.9) -> int:
    """The multiple of ``divisor`` nearest to ``size`` that is at least ``minimum`` and ``limit * size``."""
    rounded = max(minimum, int(size + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < limit * size else rounded


def conv_norm_names(conv: str, norm: str, path: str) -> tuple[Row, ...]:
    """The rows of one ConvNorm.

    Args:
        conv, norm: patterns of the names of its modules in PyTorch.
        path: of the ConvNorm.
    """
    return (
        Rename(rf"{conv}\.weight", rf"{path}.conv.kernel", convolution),
        Rename(rf"{norm}\.weight", rf"{path}.norm.scale"),
        Rename(rf"{norm}\.bias", rf"{path}.norm.bias"),
        Rename(rf"{norm}\.running_mean", rf"{path}.norm.mean", collection="batch_stats"),
        Rename(rf"{norm}\.running_var", rf"{path}.norm.var", collection="batch_stats"),
        Drop(rf"{norm}\.num_batches_tracked"),
    )


def require_supported(config: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Refuses variants of a model that its module does not implement.

    Args:
        config: option -> value.
        supported: option -> the only value that is supported.

    Raises:
        ModelError: an option has another value.
    """
    for option, value in supported.items():
        if config[option] != value:
            raise ModelError(f"{option}: only {value!r} is supported; received {config[option]!r}")
