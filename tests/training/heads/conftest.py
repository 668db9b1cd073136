import jax.numpy as jnp
import numpy as np
import pytest

from finetune.models.zero_shot import TextClassifier


@pytest.fixture(scope="session")
def clip_blobs():
    """A function that draws (features, labels) for training and for evaluation, and class names' embeddings near them.

    As with CLIP, images lie on one side of the sphere and texts on another, with small positive cosines of any two, and
    features differ in length.
    """

    def draw(shots=6, classes=5, d=12, e=8, text_noise=1.0, seed=0):
        rng = np.random.default_rng(seed)
        projection = rng.normal(0, d**-0.5, (d, e))
        centers, side, apart = rng.normal(0, 1, (classes, e)), 2 * rng.normal(0, 1, e), 2 * rng.normal(0, 1, e)
        texts = centers + text_noise * rng.normal(0, 1, (classes, e)) + side + apart

        def images(each):
            labels = np.repeat(np.arange(classes), each)
            embeddings = centers[labels] + side + rng.normal(0, 0.7, (len(labels), e))
            lengths = rng.uniform(0.5, 2, (len(labels), 1))
            return (lengths * embeddings @ np.linalg.pinv(projection)).astype(np.float32), labels

        unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
        text = TextClassifier(jnp.asarray(projection, jnp.float32), jnp.asarray(unit.T, jnp.float32), 100.0)
        return images(shots), images(40), text

    return draw
