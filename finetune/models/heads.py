"""Heads that hold the training images' features and compare an image with each of them."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

_LEAST_SHARE = 1e-8  # of the votes, so that a class without any has a finite logit


@dataclass(frozen=True)
class KnnConfig:
    """Of a :class:`KnnHead`.

    Attributes:
        size: number of training images.
        k: how many of them vote, all where there are fewer.
        temperature: a vote weighs exp(cosine similarity / temperature).
    """

    size: int
    k: int = 20
    temperature: float = 0.07

    def build(self, num_classes: int) -> nn.Module:
        return KnnHead(self, num_classes)


class KnnHead(nn.Module):
    """The weighted vote of the nearest training images (Wu et al. 2018, arXiv:1805.01978, section 3.4; Caron et al.
    2021, arXiv:2104.14294).

    Has no parameters. The collection ``memory`` has ``keys``, float32 [size, d], unit length, and ``labels``, int32
    [size]; :func:`~finetune.training.heads.knn.fit_knn` makes it.
    """

    config: KnnConfig
    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """The logarithm of each class's share of the votes, at least log 1e-8.

        Args:
            features: float [N, d].

        Returns:
            float32 [N, num_classes].
        """
        size = self.config.size
        keys = self.variable("memory", "keys", jnp.zeros, (size, features.shape[-1]), jnp.float32).value
        labels = self.variable("memory", "labels", jnp.zeros, (size,), jnp.int32).value
        # Divided by the temperature, errors of reduced precision, the default on GPUs and TPUs, would be felt.
        similarities = jnp.matmul(unit_length(features), keys.T, precision="highest")
        nearest, indices = jax.lax.top_k(similarities, min(self.config.k, size))
        votes = jax.nn.softmax(nearest / self.config.temperature)
        shares = (votes[..., None] * jax.nn.one_hot(labels[indices], self.num_classes)).sum(axis=-2)
        return jnp.log(jnp.maximum(shares, _LEAST_SHARE))


@dataclass(frozen=True)
class TipAdapterConfig:
    """Of a :class:`TipAdapterHead`.

    Attributes:
        size: number of training images.
        embedding: width of the space shared with text.
    """

    size: int
    embedding: int

    def build(self, num_classes: int) -> nn.Module:
        return TipAdapterHead(self, num_classes)


class TipAdapterHead(nn.Module):
    """Zero-shot CLIP plus a cache of the training images (Tip-Adapter: Zhang et al. 2022, arXiv:2111.03930).

    With f the image's embedding of unit length, the logits are ``scale * f @ text + alpha * sum_i exp(-beta * (1 - f @
    keys_i)) * one_hot(label_i)``.

    The parameters are ``projection`` [d, embedding], ``text`` [embedding, num_classes] of unit length, ``keys`` [size,
    embedding], and the scalars ``scale`` (CLIP's exp(logit_scale), 100), ``alpha`` and ``beta``; the collection
    ``memory`` has ``labels``, int32 [size]. Keys are compared as they are: fine-tuning changes their length, too, as in
    the published code.
    """

    config: TipAdapterConfig
    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Logits.

        Args:
            features: float [N, d], pooled features before the projection.

        Returns:
            float32 [N, num_classes].
        """
        size, embedding = self.config.size, self.config.embedding
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        projection = self.param("projection", zeros, (features.shape[-1], embedding), jnp.float32)
        text = self.param("text", zeros, (embedding, self.num_classes), jnp.float32)
        keys = self.param("keys", zeros, (size, embedding), jnp.float32)
        scale, alpha, beta = (self.param(name, ones, (), jnp.float32) for name in ("scale", "alpha", "beta"))
        labels = self.variable("memory", "labels", jnp.zeros, (size,), jnp.int32).value
        with jax.default_matmul_precision("highest"):
            embeddings = unit_length(jnp.asarray(features, jnp.float32) @ projection)
            cache = cache_logits(embeddings @ keys.T, labels, beta, self.num_classes)
            return scale * embeddings @ text + alpha * cache


def cache_logits(affinities: jax.Array, labels: jax.Array, beta: jax.Array | float, num_classes: int) -> jax.Array:
    """What Tip-Adapter's cache says of each class, for alpha 1: float32 [N, num_classes].

    Args:
        affinities: float32 [N, size], of images with keys.
        labels: int [size], of the keys.
    """
    return jnp.exp(-beta * (1 - affinities)) @ jax.nn.one_hot(labels, num_classes)


def unit_length(x: jax.Array) -> jax.Array:
    """Vectors along the last axis in float32, scaled to length one; zeros, which ReLU can give, stay zeros."""
    x = jnp.asarray(x, jnp.float32)
    # Here zeros have a finite gradient, which the square root alone does not have.
    return x / jnp.sqrt(jnp.maximum((x**2).sum(axis=-1, keepdims=True), 1e-24))
