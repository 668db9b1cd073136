"""Where in an image a classifier finds its answer, as a map over the image's pixels."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from finetune.images.open import ImageLike, open_image
from finetune.inference.predictor import Predictor
from finetune.models.classifier import Classifier
from finetune.models.depth import depth_order_of
from finetune.models.families.beit import BeitModule
from finetune.models.layers.attention import attention_seen
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig

Method = Literal["attention rollout", "Grad-CAM", "gradient x input"]
_OUTPUT, _CHANGE = "__call__", "change"  # what Flax calls a module's output; the collection of what is added to one


class Explainer:
    """Maps of a restored classifier's images.

    Attributes:
        method: what suits the backbone:

            - ``attention rollout`` (Abnar & Zuidema 2020, arXiv:2005.00928) for transformers whose blocks attend to all
              patches: how much of each patch reaches what the head reads. It is the same for each class.
            - ``Grad-CAM`` (Selvaraju et al. 2017, arXiv:1610.02391) for networks with a last feature map, the windowed
              transformers among them: what speaks for one class.
            - ``gradient x input`` (Shrikumar et al. 2016, arXiv:1605.01713) for any other module: the pixels that one
              class's logit depends on.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, model, spec = predictor, predictor.model, predictor.image_spec
        self.method: Method = "gradient x input"
        compute: Callable[..., jax.Array] = partial(_gradient_times_input, model)
        if isinstance(model.backbone, VisionTransformer | BeitModule) and not model.headless:
            self.method, compute = "attention rollout", partial(_attention_rollout, model)
        elif (path := _last_feature_map(model, predictor.variables, spec.shape)) is not None:
            self.method, compute = "Grad-CAM", partial(_class_activation, model, path)

        def explain(variables: Any, images: jax.Array, index: jax.Array) -> jax.Array:
            grid = compute(variables, spec.normalize(images), index).astype(jnp.float32)
            pixels = jax.image.resize(grid, (spec.height, spec.width), "bilinear")
            least = pixels.min() if self.method == "attention rollout" else 0.0  # no patch gets none of the attention
            return _to_unit_range(pixels - least)

        self._explain = jax.jit(explain)

    def explain(self, image: ImageLike, index: int) -> np.ndarray:
        """float32 [H, W] in 0..1 over the model's input: the image resized and cropped as the image spec says.

        Args:
            image: as in :meth:`Predictor.predict`.
            index: of the class that is asked about.

        Returns:
            The larger, the more a pixel counts; zeros where nothing does, such as where no part of the feature map
            speaks for the class.

        Raises:
            DataError: the image cannot be used.
            IndexError: there is no such class.
            TypeError: the index is no integer.
        """
        count = len(self._predictor.class_names)
        if not 0 <= (index := operator.index(index)) < count:
            raise IndexError(f"index: a class from 0 to {count - 1}; received {index}")
        pixels = self._predictor.image_spec.to_uint8(open_image(image))
        inputs = self._predictor.placement.put_whole((pixels[None], np.int32(index)))
        return np.asarray(self._explain(self._predictor.variables, *inputs))


def rollout(weights: Sequence[jax.Array]) -> jax.Array:
    """How much of each token at the input is in each token at the output: float32 [tokens, tokens], rows sum to one.

    Half of each token passes a block by its shortcut, the other half comes by its attention.

    Args:
        weights: of each block, in their order: [heads, tokens, tokens].
    """
    identity = jnp.eye(weights[0].shape[-1])
    joint = identity
    for block in weights:
        joint = jnp.matmul(0.5 * block.mean(axis=0) + 0.5 * identity, joint, precision="highest")
    return joint


def grad_cam(features: jax.Array, gradient: jax.Array) -> jax.Array:
    """ReLU of the channels' sum, each weighted with its mean gradient: [h, w].

    Args:
        features: a feature map [h, w, channels].
        gradient: of one class's logit with respect to it.
    """
    return jax.nn.relu(jnp.einsum("hwc,c->hw", features, gradient.mean(axis=(0, 1)), precision="highest"))


def _attention_rollout(model: Classifier, variables: Any, pixels: jax.Array, index: jax.Array) -> jax.Array:
    config: ViTConfig = model.backbone.config
    with attention_seen() as seen:
        model.apply(variables, pixels, method=lambda classifier, images: classifier.backbone(images, train=False))
    maps = [weights[0] for weights in seen]
    blocks = [weights for weights in maps if weights.shape[-2] == weights.shape[-1]]
    pooling = [weights for weights in maps if weights.shape[-2] == 1]
    shares = _share_read(model, config, blocks[0].shape[-1], pooling[-1] if pooling else None)
    patches = (shares @ rollout(blocks))[config.prefix_tokens :]
    return patches.reshape(pixels.shape[1] // config.patch_size, -1)


def _share_read(model: Classifier, config: ViTConfig, tokens: int, pooling: jax.Array | None) -> jax.Array:
    """float32 [tokens]: how much of each of the last block's tokens is in the pooled features.

    Args:
        pooling: the weights of an attention pooling, [heads, 1, tokens]; None without one.
    """
    position = jnp.arange(tokens)
    if model.pool == "mean":
        read = position >= 0
    elif model.pool == "cls":
        read = position == 0
    elif pooling is not None:
        return pooling.mean(axis=0)[0]
    elif config.pooling == "mean":
        read = position >= config.prefix_tokens
    else:
        read = position < (2 if config.pooling == "class_distilled" else 1)
    return read / read.sum()


def _class_activation(
    model: Classifier, path: tuple[str, ...], variables: Any, pixels: jax.Array, index: jax.Array
) -> jax.Array:
    """Grad-CAM on the output of the module at that path."""

    def logit(change: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        changes = unflatten_dict({(_CHANGE, *path, _OUTPUT): change})
        with nn.intercept_methods(_add_change):
            logits, state = model.apply(
                {**variables, **changes},
                pixels,
                capture_intermediates=lambda module, method: module.path == path and method == _OUTPUT,
                mutable=["intermediates"],
            )
        (features,) = flatten_dict(state["intermediates"])[*path, _OUTPUT]
        return jnp.asarray(logits)[0, index], features

    _, shape = jax.eval_shape(logit, 0.0)
    gradient, features = jax.grad(logit, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return grad_cam(*(array[0].astype(jnp.float32) for array in (features, gradient)))


def _add_change(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """Adds to a module's output what the collection of changes has at its path."""
    output, module = call(*args, **kwargs), context.module
    if context.method_name != _OUTPUT or not module.has_variable(_CHANGE, _OUTPUT):
        return output
    return output + module.get_variable(_CHANGE, _OUTPUT)


def _gradient_times_input(model: Classifier, variables: Any, pixels: jax.Array, index: jax.Array) -> jax.Array:
    gradient = jax.grad(lambda images: jnp.asarray(model.apply(variables, images))[0, index])(pixels)
    return jnp.abs((gradient * pixels)[0].sum(axis=-1))


def _last_feature_map(model: Classifier, variables: Any, shape: tuple[int, int, int]) -> tuple[str, ...] | None:
    """The path of the last module whose output is a feature map [1, h, w, channels]; None where there is none.

    Our own networks keep to their last map until they pool it, whatever shape it then has. In others, a sequence of
    tokens behind the last map may be all of a transformer, whose patch embedding that map would be.
    """
    called: list[tuple[str, ...]] = []

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == _OUTPUT:
            called.append(context.module.path)
        return output

    def capture(variables: Any, pixels: Any) -> Any:
        with nn.intercept_methods(note):
            return model.apply(variables, pixels, capture_intermediates=True, mutable=["intermediates"])[1]

    state = jax.eval_shape(capture, variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    outputs = flatten_dict(state["intermediates"])  # what a scan keeps to itself is not among them
    shapes = {path: getattr(outputs.get((*path, _OUTPUT), (None,))[-1], "shape", ()) for path in called}
    with_positions = [path for path in called if len(shapes[path]) in (3, 4) and np.prod(shapes[path][1:-1]) > 1]
    maps = [path for path in with_positions if len(shapes[path]) == 4 and called.count(path) == 1]
    if not maps or (depth_order_of(model.backbone) is None and maps[-1] != with_positions[-1]):
        return None
    return maps[-1]


def _to_unit_range(values: jax.Array) -> jax.Array:
    """Values of at least 0, divided by the largest; zeros stay zeros."""
    largest = values.max()
    return jnp.where(largest > 0, values / jnp.where(largest > 0, largest, 1), 0)
