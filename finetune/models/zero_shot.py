"""A classification head made of words: class names through CLIP's text tower (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from finetune.errors import ModelError
from finetune.models.backbone import Backbone


def zero_shot_head(
    backbone: Backbone, class_names: Sequence[str], templates: Sequence[str], features: jax.Array | np.ndarray
) -> jax.Array:
    """The kernel of a linear head that classifies pooled features as CLIP classifies images by prompts.

    CLIP compares unit vectors: the projected image feature and, for each class, the normalized mean of its prompts'
    embeddings. A linear head cannot normalize each image, but the norm is a positive factor common to all classes:
    the predicted class is CLIP's own for every image. The mean norm over ``features`` sets the temperature, so that
    probabilities are near CLIP's too.

    Args:
        backbone: from a CLIP or SigLIP checkpoint (``backbone.text`` is there).
        class_names: one for each class.
        templates: prompts with one ``{}`` for the class name.
        features: float32 [images, num_features], pooled features of some images of the kind to classify.

    Returns:
        float32 [num_features, classes].

    Raises:
        ModelError: the backbone has no text tower.
    """
    if backbone.text is None:
        raise ModelError(f"a zero-shot head needs a text tower, and this checkpoint ({backbone.family}) has none")
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    embeddings = backbone.text.embed_texts(prompts).reshape(len(class_names), len(templates), -1).mean(axis=1)
    classes = embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    projection = backbone.text.image_projection
    norm = jnp.linalg.norm(features @ projection, axis=-1).mean()
    return jnp.exp(backbone.text.variables["params"]["logit_scale"]) / norm * (projection @ classes.T)
