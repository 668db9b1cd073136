"""keras-hub on JAX, as ``benchmarks.peers`` times it: ``fit`` of a ViT-B/32 whose parameters all learn."""

from __future__ import annotations

import os
import sys

os.environ["KERAS_BACKEND"] = "jax"  # before keras is imported

import keras
import keras_hub
import numpy as np

from benchmarks.side import serve, versions

NUM_CLASSES, LEARNING_RATE = 100, 1e-3


class KerasHub:
    """Adam, float32; images already normalized and in memory."""

    def __init__(self, size: int) -> None:
        keras.utils.set_random_seed(0)
        backbone = keras_hub.models.ViTBackbone(
            image_shape=(224, 224, 3), patch_size=(32, 32), num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072
        )
        self.model = keras_hub.models.ViTImageClassifier(backbone, NUM_CLASSES)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.Adam(LEARNING_RATE), loss)
        rng, self.size = np.random.default_rng(0), size
        self.images = rng.standard_normal((size, 224, 224, 3), np.float32)
        self.labels = rng.integers(0, NUM_CLASSES, size)

    def run(self, what: str, count: int) -> None:
        if what != "full":
            raise ValueError(f"only the full step is written for keras-hub; asked for {what}")
        images, labels = (np.concatenate([array] * count) for array in (self.images, self.labels))
        self.model.fit(images, labels, batch_size=self.size, epochs=1, shuffle=False, verbose=0)


if __name__ == "__main__":
    serve(KerasHub(int(sys.argv[1])).run, {"versions": lambda: versions("keras", "keras-hub", "jax")})
