"""A pretrained backbone with a classification head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError, TransferError
from finetune.models.backbone import Backbone
from finetune.models.surgery import transplant

Pool = Literal["pooler", "cls", "mean"]


class Classifier(nn.Module):
    """``backbone`` -> pooled features -> dropout -> linear ``head``; after Flax's guide on transfer learning.

    Attributes:
        backbone: any Linen module from images to features. Its training switch may be called ``train``,
            ``training`` or ``deterministic``; it may return a BackboneOutput, a transformers output, or an array.
        num_classes: width of the head.
        dropout: rate on the pooled features, in training.
        pool: ``pooler`` (the backbone's own pooling), ``cls`` (first token) or ``mean`` (over tokens or pixels).
            None takes ``pooler`` where there is one, else the array itself if it is [N, features], else ``mean``.
    """

    backbone: nn.Module
    num_classes: int
    dropout: float = 0.0
    pool: Pool | None = None

    def setup(self) -> None:
        self.head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)
        self.head_dropout = nn.Dropout(self.dropout)

    def __call__(self, images: jax.Array, train: bool = False, backbone_train: bool | None = None) -> jax.Array:
        """Logits.

        Args:
            images: float32 [N, H, W, 3], normalized.
            train: apply dropout (needs the ``dropout`` rng) and let the backbone train.
            backbone_train: the backbone's own switch; None follows ``train``. A frozen backbone takes False, so that
                it computes what it will compute in evaluation and its running statistics hold still.

        Returns:
            float32 [N, num_classes].
        """
        features = self.features(images, train if backbone_train is None else backbone_train)
        return self.head(self.head_dropout(features, deterministic=not train)).astype(jnp.float32)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The pooled features that the head reads, [N, num_features]."""
        accepted = inspect.signature(type(self.backbone).__call__).parameters
        switches = {"train": train, "training": train, "deterministic": not train}
        arguments = {name: value for name, value in switches.items() if name in accepted}
        if self.pool in (None, "pooler") and "pooled_only" in accepted:
            arguments["pooled_only"] = True
        return _pooled(self.backbone(images, **arguments), self.pool)


def _pooled(output: Any, pool: Pool | None) -> jax.Array:
    pooler = getattr(output, "pooler_output", None)
    if pool == "pooler" and pooler is None:
        raise ModelError("pool='pooler': this backbone has no pooling of its own; use 'cls' or 'mean'")
    if pool in (None, "pooler") and pooler is not None:
        return pooler.reshape(pooler.shape[0], -1)  # transformers' convolutional networks give [N, features, 1, 1]
    hidden = getattr(output, "last_hidden_state", output)
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    if pool == "cls" and hidden.ndim != 3:
        raise ModelError(f"pool='cls': this backbone gives {list(hidden.shape)}, no [N, tokens, features]; use 'mean'")
    if hidden.ndim == 2:
        return hidden
    if pool == "cls":
        return hidden[:, 0]
    return hidden.mean(axis=tuple(range(1, hidden.ndim - 1)))


def build_classifier(
    backbone: Backbone | tuple[nn.Module, Mapping[str, Any]],
    num_classes: int,
    *,
    head_init: Literal["zeros", "lecun_normal"] | jax.Array = "zeros",
    dropout: float = 0.0,
    pool: Pool | None = None,
    rng: jax.Array | None = None,
    image_size: int | None = None,
) -> tuple[Classifier, dict[str, Any]]:
    """Puts a head on a backbone and carries the pretrained variables over, every collection of them.

    Args:
        backbone: from :func:`load_backbone`, or (module, variables) of any Linen module, those of transformers' Flax
            models included.
        num_classes: number of classes.
        head_init: ``zeros``, ``lecun_normal``, or a kernel [num_features, num_classes] such as
            :func:`zero_shot_head` makes. The bias starts at zero.
        dropout: rate on the pooled features.
        pool: see :class:`Classifier`.
        rng: key for ``lecun_normal``; by default key 0.
        image_size: edge in pixels used to find shapes when a (module, variables) pair does not tell it.

    Returns:
        The module, and variables with ``params`` = {``backbone``, ``head``}. Leaves are shared, not copied.

    Raises:
        TransferError: backbone variables that do not fit the module, or a kernel of another shape.
    """
    module, variables = (backbone.module, backbone.variables) if isinstance(backbone, Backbone) else backbone
    classifier = Classifier(module, num_classes, dropout, pool)
    size = image_size or _image_size(backbone, module)
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: classifier.init(jax.random.key(0), x), pixels)
    head = _init_head(shapes["params"]["head"], head_init, jax.random.key(0) if rng is None else rng)
    target = {**shapes, "params": {**shapes["params"], "head": head}}
    result, _ = transplant(variables, target, into="backbone", fresh=["params/head/.*"])
    return classifier, result


def _image_size(backbone: Any, module: nn.Module) -> int:
    if isinstance(backbone, Backbone):
        return backbone.image_spec.height
    return int(getattr(getattr(module, "config", None), "image_size", None) or 224)


def _init_head(shapes: Any, init: Any, rng: jax.Array) -> dict[str, jax.Array]:
    kernel, bias = shapes["kernel"], shapes["bias"]
    initializers = {"zeros": nn.initializers.zeros, "lecun_normal": nn.initializers.lecun_normal()}
    if not isinstance(init, str):
        if init.shape != kernel.shape:
            raise TransferError(f"head_init: a kernel of shape {kernel.shape} is needed; received {init.shape}")
        values = jnp.asarray(init, kernel.dtype)
    elif init in initializers:
        values = initializers[init](rng, kernel.shape, kernel.dtype)
    else:
        raise ModelError(f"head_init: {init!r}; choose {', '.join(initializers)}, or give a kernel")
    return {"kernel": values, "bias": jnp.zeros(bias.shape, bias.dtype)}
