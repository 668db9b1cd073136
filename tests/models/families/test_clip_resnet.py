import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from paths import GOLDENS

from finetune.models.backbone import load_backbone
from finetune.models.classifier import build_classifier
from finetune.models.depth import depth_order_of
from finetune.models.pretrained import find_reader
from finetune.models.registry import depth_order_of_tree
from finetune.optim.selectors import select
from finetune.trees import paths_of
from finetune.weights.layout import open_checkpoint
from finetune.weights.names import apply_table

GOLDEN = GOLDENS / "open-clip-resnet"


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(GOLDEN)


@pytest.mark.slow
def test_a_training_step_leaves_the_gradients_and_running_statistics_of_pytorch(backbone):
    expected = np.load(GOLDEN / "expected.npz")

    @jax.jit
    def step(params):
        def loss_fn(params):
            variables = {**backbone.variables, "params": params}
            output, updated = backbone.module.apply(
                variables, expected["pixel_values"], train=True, mutable=["batch_stats"]
            )
            return (output.pooler_output**2).mean(), updated["batch_stats"]

        return jax.value_and_grad(loss_fn, has_aux=True)(params)

    (loss, after), gradients = step(backbone.variables["params"])
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    ours = flatten_dict({"params": gradients, "batch_stats": after}, sep="/")
    checkpoint = open_checkpoint(GOLDEN)
    rows = find_reader(checkpoint)[1].read(checkpoint.config, checkpoint.tensors.keys()).names
    named = apply_table({key.split("/")[1]: expected[key] for key in expected if "/" in key}, rows)
    theirs = {"/".join(path).replace("vision_model/", ""): np.asarray(leaf) for path, leaf in named.leaves.items()}
    assert ours.keys() == theirs.keys()
    for path in ours:
        # the softmax does not depend on the keys' bias: its gradient is rounding alone
        size = theirs[path.replace("k_proj/bias", "q_proj/bias")]
        assert np.abs(ours[path] - theirs[path]).max() <= 1e-4 * np.abs(size).max(), path


def test_selectors_and_the_order_of_the_blocks_know_every_parameter(backbone):
    classifier, variables = build_classifier(backbone, 3)
    paths = paths_of(variables["params"])
    order = depth_order_of(classifier.backbone)
    assert select("embeddings", paths) == {"backbone/attention_pool/position_embedding/embedding"}
    assert len(select("norms", paths)) == 2 * (3 + 5 * 3 + 4)
    assert {path.split("/")[1] for path in select("blocks[-1]", paths, order)} == {"layers_3"}
    inner = [path.removeprefix("backbone/") for path in paths if path.startswith("backbone/")]
    assert order.num_blocks(inner) == 5
    assert depth_order_of_tree(inner) == order


def test_at_another_image_size_the_positions_of_the_pooling_are_interpolated(backbone):
    larger = load_backbone(GOLDEN, image_size=96)
    assert larger.report.resized == ("params/vision_model/attention_pool/position_embedding/embedding",)
    ours, theirs = (flatten_dict(b.variables, sep="/") for b in (larger, backbone))
    table = "params/attention_pool/position_embedding/embedding"
    assert {path for path in ours if not np.array_equal(ours[path], theirs[path])} == {table}
    np.testing.assert_array_equal(ours[table][0], theirs[table][0])  # that of the mean
    output = jax.eval_shape(larger.module.apply, larger.variables, jnp.zeros((2, 96, 96, 3)))
    assert output.last_hidden_state.shape == (2, 3, 3, 64)
    assert output.pooler_output.shape == (2, 12)


def test_rematerialization_changes_no_value(backbone):
    pixels = np.load(GOLDEN / "expected.npz")["pixel_values"]
    plain, again = (
        jax.jit(module.apply)(backbone.variables, pixels).pooler_output
        for module in (backbone.module, backbone.module.clone(remat=True))
    )
    np.testing.assert_allclose(again, plain, rtol=1e-5)
