"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"), with or without BatchNorm.

A complete classifier for small grayscale images, trained from scratch; it shows what batch normalization does for a
network that is hard to train without it.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.models.layers.convolution import BatchNorm

_KERNEL = nn.initializers.xavier_uniform()


class LeNet(nn.Module):
    """Two convolutions with average pooling and three dense layers, with sigmoids between them.

    float32 [N, 28, 28, C] to logits [N, num_classes].

    Attributes:
        num_classes: width of the last layer.
        norm: use batch normalization before each sigmoid.
        dtype: compute dtype.
    """

    num_classes: int = 10
    norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        def activate(x: jax.Array, name: str) -> jax.Array:
            if self.norm:
                x = BatchNorm(x.shape[-1], dtype=self.dtype, name=name)(x, train)
            return nn.sigmoid(x)

        def dense(x: jax.Array, features: int, name: str) -> jax.Array:
            return nn.Dense(features, kernel_init=_KERNEL, dtype=self.dtype, name=name)(x)

        x = nn.Conv(6, (5, 5), padding=2, kernel_init=_KERNEL, dtype=self.dtype, name="conv1")(images)
        x = nn.avg_pool(activate(x, "norm1"), (2, 2), (2, 2))
        x = nn.Conv(16, (5, 5), padding=0, kernel_init=_KERNEL, dtype=self.dtype, name="conv2")(x)
        x = nn.avg_pool(activate(x, "norm2"), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        x = activate(dense(x, 120, "dense1"), "norm3")
        x = activate(dense(x, 84, "dense2"), "norm4")
        return dense(x, self.num_classes, "dense3")
