"""A pretrained backbone with a classification head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from flax.traverse_util import flatten_dict

from finetune.errors import ModelError, TransferError
from finetune.models.backbone import Backbone
from finetune.models.surgery import transplant
from finetune.trees import paths_of

Pool = Literal["pooler", "cls", "mean"]


class HeadModule(Protocol):
    """The configuration of a head, plain values: ``build`` makes its module."""

    def build(self, num_classes: int) -> nn.Module: ...


class Classifier(nn.Module):
    """``backbone`` -> pooled features -> dropout -> ``head``, a linear layer by default; after Flax's guide on transfer
    learning.

    Attributes:
        backbone: any Linen module from images to features. It may take a training switch called ``train``,
            ``training`` or ``deterministic``; it may return a BackboneOutput, a transformers output, or an array.
        num_classes: width of the head, or of a headless model's output.
        dropout: rate on the pooled features, in training.
        pool: ``pooler`` (the backbone's own pooling), ``cls`` (first token) or ``mean`` (over tokens or pixels).
            None takes ``pooler`` where there is one, else the array itself if it is [N, features], else ``mean``.
        headless: the backbone is a complete model whose output is the logits; no head is attached.
        head_config: of a head that is not linear, such as :class:`~finetune.models.heads.KnnConfig`.
    """

    backbone: nn.Module
    num_classes: int
    dropout: float = 0.0
    pool: Pool | None = None
    headless: bool = False
    head_config: HeadModule | None = None

    def setup(self) -> None:
        if self.headless:
            return
        if self.head_config is not None:
            self.head: nn.Module = self.head_config.build(self.num_classes)
        else:
            self.head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)
        self.head_dropout = nn.Dropout(self.dropout)

    def __call__(self, images: jax.Array, train: bool = False, backbone_train: bool | None = None) -> jax.Array:
        """Logits.

        Args:
            images: float32 [N, H, W, 3], normalized.
            train: apply dropout (needs the ``dropout`` rng) and let the backbone train.
            backbone_train: the backbone's own switch; None follows ``train``. A frozen backbone takes False, so that
                it computes what it will compute in evaluation and its running statistics stay as they are.

        Returns:
            float32 [N, num_classes].
        """
        train_backbone = train if backbone_train is None else backbone_train
        if self.headless:
            output = self.backbone(images, **training_switch(self.backbone, train_backbone))
            return jnp.asarray(_logits(output), jnp.float32)
        features = self.features(images, train_backbone)
        return self.head(self.head_dropout(features, deterministic=not train)).astype(jnp.float32)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The pooled features that the head reads, [N, num_features]."""
        arguments = training_switch(self.backbone, train)
        if self.pool in (None, "pooler") and "pooled_only" in _arguments(self.backbone):
            arguments["pooled_only"] = True
        return _pooled(self.backbone(images, **arguments), self.pool)


def head_paths(variables: Mapping[str, Any]) -> frozenset[str]:
    """``collection/path`` of everything that belongs to the head of a classifier."""
    return frozenset(path for path in paths_of(variables) if path.split("/")[1:2] == ["head"])


def without_head(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a classifier's backbone alone."""
    return {
        name: {key: tree for key, tree in collection.items() if key != "head"} for name, collection in variables.items()
    }


def training_switch(module: nn.Module, train: bool) -> dict[str, bool]:
    """The arguments by which a module is told whether it trains; none where it makes no difference to it.

    Raises:
        ModelError: its switch is an attribute alone, which would stay as it is.
    """
    known, accepted = train_flags(train), _arguments(module)
    fixed = [field.name for field in fields(module) if field.name in known]
    if fixed and accepted.isdisjoint(known):
        raise ModelError(
            f"{type(module).__name__}: its {fixed[0]!r} is an attribute, the same in training and in evaluation; "
            f"take it as an argument: def __call__(self, x, {fixed[0]})"
        )
    return {name: value for name, value in known.items() if name in accepted}


def train_flags(train: bool) -> dict[str, bool]:
    """Every name that a training switch may have, with what it is then."""
    return {"train": train, "training": train, "deterministic": not train}


def _arguments(module: nn.Module) -> set[str]:
    return set(inspect.signature(type(module).__call__).parameters)


def _logits(output: Any) -> Any:
    return getattr(output, "logits", output[0] if isinstance(output, tuple) else output)


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
    head_init: Literal["zeros", "lecun_normal"] | jax.Array | None = "zeros",
    dropout: float = 0.0,
    pool: Pool | None = None,
    rng: jax.Array | None = None,
    image_size: int | None = None,
    example: Any = None,
) -> tuple[Classifier, dict[str, Any]]:
    """Attaches a head to a backbone and transfers the pretrained variables, every collection of them.

    Args:
        backbone: from :func:`load_backbone`, or (module, variables) of any Linen module, those of transformers' Flax
            models included.
        num_classes: number of classes.
        head_init: ``zeros``, ``lecun_normal``, or a kernel [num_features, num_classes] such as
            :func:`zero_shot_head` makes. The bias starts at zero. None attaches no head to a complete model, whose
            output is the logits.
        dropout: rate on the pooled features.
        pool: see :class:`Classifier`.
        rng: key for ``lecun_normal``; by default key 0.
        image_size: edge in pixels used to find shapes when a (module, variables) pair does not tell it.
        example: a batch, or its ``jax.ShapeDtypeStruct``, for a module that takes other than float32
            [N, image_size, image_size, 3].

    Returns:
        The module, and variables with ``params`` = {``backbone``, ``head``}. Leaves are shared, not copied.

    Raises:
        TransferError: backbone variables that do not fit the module, or a kernel of another shape.
        ModelError: a complete model whose output is not [N, num_classes].
    """
    module, variables = (backbone.module, backbone.variables) if isinstance(backbone, Backbone) else backbone
    classifier = Classifier(module, num_classes, dropout, pool, headless=head_init is None)
    inputs = _shape_of(backbone, module, image_size) if example is None else example
    logits, target = init_shapes(classifier, inputs)
    if logits.shape != (inputs.shape[0], num_classes):
        raise ModelError(
            f"{type(module).__name__}: as a complete model for {num_classes} classes it has to give "
            f"[N, {num_classes}]; for images {list(inputs.shape)} it gives {list(logits.shape)}"
        )
    if head_init is not None:
        head = _init_head(target["params"]["head"], head_init, jax.random.key(0) if rng is None else rng)
        target = {**target, "params": {**target["params"], "head": head}}
    result, _ = transplant(state_of(variables), target, into="backbone", fresh=["params/head/.*"])
    return classifier, result


def init_shapes(classifier: Classifier, inputs: Any) -> tuple[Any, dict[str, Any]]:
    """Shapes of the logits and of the variables."""
    logits, shapes = jax.eval_shape(lambda x: classifier.init_with_output(jax.random.key(0), x), inputs)
    return logits, state_of(shapes)


def state_of(variables: Any) -> dict[str, Any]:
    """Variables without partitioning metadata, and without collections that are no state: what modules ``sow`` for
    others to see, which is in tuples."""
    trees = nn.meta.unbox(unfreeze(variables)).items()
    return {name: tree for name, tree in trees if not any(isinstance(x, tuple) for x in flatten_dict(tree).values())}


def _shape_of(backbone: Any, module: nn.Module, image_size: int | None) -> jax.ShapeDtypeStruct:
    if isinstance(backbone, Backbone):
        return jax.ShapeDtypeStruct((1, *backbone.image_spec.shape), jnp.float32)
    size = image_size or int(getattr(getattr(module, "config", None), "image_size", None) or 224)
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def _init_head(shapes: Any, init: Any, rng: jax.Array) -> dict[str, jax.Array]:
    kernel, bias = shapes["kernel"], shapes["bias"]
    if not isinstance(init, str):
        if init.shape != kernel.shape:
            raise TransferError(f"head_init: a kernel of shape {kernel.shape} is needed; received {init.shape}")
        values = jnp.asarray(init, kernel.dtype)
    elif init == "zeros":
        values = jax.device_put(np.zeros(kernel.shape, kernel.dtype))
    elif init == "lecun_normal":
        values = nn.initializers.lecun_normal()(rng, kernel.shape, kernel.dtype)
    else:
        raise ModelError(f"head_init: {init!r}; choose zeros, lecun_normal, or give a kernel")
    return {"kernel": values, "bias": jax.device_put(np.zeros(bias.shape, bias.dtype))}
