"""Modules and variables from transformers 4.57, the last with Flax classes; skipped where transformers is newer."""

import numpy as np
import pytest
import transformers

from finetune import build_classifier, extract_submodule
from finetune.images.spec import ImageSpec
from finetune.models.families.clip import CLIPModule, from_transformers
from finetune.optim.schedules import StageLength
from finetune.recipe import Partition, TrainStage
from finetune.training.stage_trainer import StageTrainer

pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith("4.5"), reason="needs transformers 4.57, which still has Flax classes"
)


@pytest.fixture(scope="module")
def flax_clip():
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        projection_dim=16,
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49},
    )
    return transformers.FlaxCLIPModel(config, seed=1)


def images(n=4):
    return np.random.default_rng(0).standard_normal((n, 16, 16, 3)).astype(np.float32)


def test_its_parameters_drop_into_our_module_with_equal_outputs(flax_clip):
    ids = np.array([[3, 4, 49, 49, 49, 49, 49, 49], [7, 49, 49, 49, 49, 49, 49, 49]])
    pixels = images()
    mask, positions = np.ones_like(ids), np.broadcast_to(np.arange(8), ids.shape)
    theirs = flax_clip.module.apply({"params": flax_clip.params}, ids, pixels, mask, positions)
    ours = CLIPModule(from_transformers(flax_clip.config)).apply({"params": flax_clip.params}, ids, pixels, mask)
    np.testing.assert_allclose(ours.logits_per_image, theirs.logits_per_image, atol=2e-5)
    np.testing.assert_allclose(ours.text_embeds, theirs.text_embeds, atol=2e-5)


def test_its_vision_module_is_extracted_and_becomes_a_classifier_that_trains(flax_clip):
    module, variables = extract_submodule(flax_clip.module, {"params": flax_clip.params}, "vision_model")
    assert type(module).__name__ == "FlaxCLIPVisionTransformer"
    classifier, variables = build_classifier((module, variables), 3)
    np.testing.assert_allclose(
        classifier.apply(variables, images(), method="features"),
        module.apply({"params": variables["params"]["backbone"]}, images()).pooler_output,
        atol=1e-6,
    )
    rules = [Partition(match="head", learning_rate=0.1), Partition(match="backbone", frozen=True)]
    spec = ImageSpec(16, 16, None, "bicubic", (0.5,) * 3, (0.5,) * 3)
    training = StageTrainer(TrainStage(steps=60, partitions=rules), classifier, variables, spec, StageLength(60))
    state = training.init_state()
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8), "label": np.array([0, 1, 2, 0])}
    losses = []
    for _ in range(40):
        state, metrics = training.step(state, training.frozen, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.96 * losses[0]  # as far as the bias alone can learn the labels of noise
