"""A classification head from class names, by CLIP's text tower (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from finetune.errors import ModelError
from finetune.models.backbone import Backbone
from finetune.models.layers.base import l2_normalize


@dataclass(frozen=True)
class TextClassifier:
    """What a text tower says of classes.

    Attributes:
        projection: float32 [num_features, width], from pooled image features to the space shared with text.
        classes: float32 [width, num_classes], unit length: the normalized mean of each class's prompts.
        scale: what cosines are multiplied by to be logits; about 100 for CLIP.
    """

    projection: jax.Array
    classes: jax.Array
    scale: float

    def kernel(self, features: jax.Array | np.ndarray) -> jax.Array:
        """The linear head of these classes, float32 [num_features, num_classes]; see :func:`zero_shot_head`."""
        return _kernel(features, self.projection, self.classes, self.scale)


@jax.jit
def _kernel(features: jax.Array, projection: jax.Array, classes: jax.Array, scale: float) -> jax.Array:
    norm = jnp.linalg.norm(features @ projection, axis=-1).mean()
    return scale / norm * (projection @ classes)


def text_classifier(backbone: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> TextClassifier:
    """Embeds the prompts of every class; arguments and errors as in :func:`zero_shot_head`."""
    if backbone.text is None:
        raise ModelError(
            f"a zero-shot head needs a text tower, which this checkpoint ({backbone.family}) does not have"
        )
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    classes, scale = _classes(
        backbone.text.embed_texts(prompts), backbone.text.variables["params"]["logit_scale"], len(templates)
    )
    return TextClassifier(backbone.text.image_projection, classes, float(scale))


@partial(jax.jit, static_argnums=2)
def _classes(embeddings: jax.Array, logit_scale: jax.Array, templates: int) -> tuple[jax.Array, jax.Array]:
    """``classes`` and ``scale`` of a TextClassifier, from the embeddings of each class's prompts."""
    means = embeddings.reshape(-1, templates, embeddings.shape[-1]).mean(axis=1)
    return l2_normalize(means).T, jnp.exp(logit_scale).squeeze()


def zero_shot_head(
    backbone: Backbone, class_names: Sequence[str], templates: Sequence[str], features: jax.Array | np.ndarray
) -> jax.Array:
    """The kernel of a linear head that classifies pooled features as zero-shot CLIP does.

    CLIP compares unit vectors: the projected features of the image with, for each class, the normalized mean of its
    prompts' embeddings. A linear head cannot normalize each image's features, but their norm is a positive factor
    common to all classes, so the predicted class is CLIP's for every image. The mean norm over ``features`` sets the
    temperature, so that the probabilities are close to CLIP's too.

    Args:
        backbone: from a CLIP or SigLIP checkpoint (``backbone.text`` is not None).
        class_names: one for each class.
        templates: prompts in which ``{}`` stands for the class name.
        features: float32 [images, num_features], pooled features of a sample of the images to classify.

    Returns:
        float32 [num_features, classes].

    Raises:
        ModelError: the backbone has no text tower.
    """
    return text_classifier(backbone, class_names, templates).kernel(features)
