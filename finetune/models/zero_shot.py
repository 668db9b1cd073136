"""A classification head from class names, by CLIP's text tower (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from finetune.errors import ModelError
from finetune.models.backbone import Backbone
from finetune.models.layers.base import l2_normalize


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
    if backbone.text is None:
        raise ModelError(
            f"a zero-shot head needs a text tower, which this checkpoint ({backbone.family}) does not have"
        )
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    embeddings = backbone.text.embed_texts(prompts).reshape(len(class_names), len(templates), -1).mean(axis=1)
    classes = l2_normalize(embeddings)
    projection = backbone.text.image_projection
    norm = jnp.linalg.norm(features @ projection, axis=-1).mean()
    return jnp.exp(backbone.text.variables["params"]["logit_scale"]) / norm * (projection @ classes.T)
