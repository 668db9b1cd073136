"""The score by which a saved model tells images of no class."""

import numpy as np
import pytest

import finetune
from finetune.data.splits import load_splits
from finetune.errors import CheckpointError, RecipeError

RECIPE = """\
name: unknown
seed: 3
backbone: {source: "builtin:tiny-clip"}
data: {source: digits, fraction: 0.2, validation: 0.2, test: 0.1}
evaluate: {unknown: KIND}
stages:
  - {name: probe, type: linear_probe, l2: 1.0}
"""


def recipe(folder, kind):
    (folder / "unknown.yaml").write_text(RECIPE.replace("KIND", kind))
    return finetune.load_recipe(folder / "unknown.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["knn", "mahalanobis"])
def test_noise_is_told_by_features_after_the_model_was_saved(tmp_path, kind):
    loaded = recipe(tmp_path, kind)
    run = finetune.run(loaded, output=tmp_path / "run", quiet=True)
    predictor = run.predictor()
    assert predictor.confidence.novelty.kind == kind
    test = load_splits(loaded.data, loaded.seed).test.take(np.arange(60))
    noise = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)
    shares = [np.mean([p.unknown for p in predictor.predict(list(images))]) for images in (test.images, noise)]
    assert shares[0] < 0.2
    assert shares[1] > 0.9
    file = run.directory / "model" / "novelty.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(CheckpointError, match="novelty.safetensors: not what model.json was written with"):
        finetune.restore(run.directory)
    file.unlink()
    with pytest.raises(CheckpointError, match="novelty.safetensors: missing"):
        finetune.restore(run.directory)


def test_a_complete_model_has_no_features_to_read(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        'backbone: {module: "finetune.models.lenet:LeNet", image: {size: 28, channels: 1}}\n'
        "head: {init: none}\ndata: {source: digits}\nevaluate: {unknown: knn}\n"
        'stages: [{epochs: 1, partitions: [{match: ".*", learning_rate: 1.0e-3}]}]\n'
    )
    with pytest.raises(RecipeError, match=r"evaluate\.unknown: knn reads the features before a head"):
        finetune.load_recipe(file)
