import ast
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax.traverse_util import flatten_dict
from paths import GOLDENS
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone, load_clip
from finetune.models.families.clip import CLIPModule, CLIPTextTransformer, from_transformers
from finetune.models.layers.vision_transformer import VisionTransformer

# single file with the real end-of-text id; sharded; half precision with the end-of-text id of OpenAI's own files;
# MetaCLIP 2
CHECKPOINTS = ["clip-quick-gelu", "clip-gelu-sharded", "clip-legacy-eos-half", "metaclip2"]


def config(layers=1, width=16, heads=2, patch=8, size=16, projection=12, activation="quick_gelu", eos=5, dropout=0.0):
    shared = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": activation}
    shared |= {"hidden_size": width, "intermediate_size": 2 * width, "attention_dropout": dropout}
    text = {**shared, "vocab_size": 20, "max_position_embeddings": 6, "eos_token_id": eos}
    vision = {**shared, "image_size": size, "patch_size": patch}
    return from_transformers(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))


IDS = np.array([[0, 7, 5, 1, 1, 1], [0, 3, 9, 11, 5, 1], [0, 5, 1, 1, 1, 1]])
PIXELS = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)


def draw(module, *arguments):
    """Random variables for a module, in no time."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), dict(shapes))


@pytest.fixture(scope="module")
def small():
    module = CLIPModule(config())
    return module, draw(module, IDS, PIXELS)


@pytest.fixture(scope="module")
def vision_params(small):
    return {"params": small[1]["params"]["vision_model"]}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request, goldens):
    """The loaded CLIP, what PyTorch computes with it, and what each of our entrances computes."""
    clip = load_clip(goldens / request.param)
    expected = dict(np.load(goldens / request.param / "expected.npz"))
    tower = VisionTransformer(clip.config.vision_config)

    @jax.jit
    def compute(variables, ids, pixels, mask):
        vision = {"params": variables["params"]["vision_model"]}
        return {
            "both": clip.module.apply(variables, ids, pixels, mask),
            "text_features": clip.module.apply(variables, ids, mask, method="get_text_features"),
            "image_features": clip.module.apply(variables, pixels, method="get_image_features"),
            "pooled_only": tower.apply(vision, pixels, pooled_only=True),
        }

    inputs = [expected[key] for key in ("input_ids", "pixel_values", "attention_mask")]
    return clip, expected, compute(clip.variables, *inputs)


def test_both_towers_agree_with_pytorch(checkpoint):
    _, expected, outputs = checkpoint
    output = outputs["both"]
    assert_close(output.vision_model_output.last_hidden_state, expected["last_hidden_state"])
    assert_close(output.vision_model_output.pooler_output, expected["pooler_output"])
    assert_close(output.image_embeds, expected["image_embeds"])
    assert_close(output.text_embeds, expected["text_embeds"])
    assert_close(output.logits_per_image, expected["logits_per_image"])
    assert_close(output.logits_per_text, expected["logits_per_image"].T)


def test_text_features_agree_with_pytorch(checkpoint):
    _, expected, outputs = checkpoint
    assert_close(outputs["text_features"], expected["text_pooler_output"])


def test_image_features_are_the_image_embeddings_before_normalization(checkpoint):
    _, expected, outputs = checkpoint
    features = outputs["image_features"]
    assert_close(features / jnp.linalg.norm(features, axis=-1, keepdims=True), expected["image_embeds"])


def test_parameters_are_float32_whatever_the_file_holds(checkpoint):
    clip, _, _ = checkpoint
    assert {leaf.dtype for leaf in jax.tree.leaves(clip.variables)} == {jnp.dtype("float32")}


def test_pooled_only_gives_the_full_pooled_output(checkpoint):
    _, _, outputs = checkpoint
    assert outputs["pooled_only"].last_hidden_state is None
    assert_close(outputs["pooled_only"].pooler_output, outputs["both"].vision_model_output.pooler_output, 2e-6)


def test_metaclip_2_reads_a_text_at_the_end_that_its_configuration_names():
    clip, expected = load_clip(GOLDENS / "metaclip2"), np.load(GOLDENS / "metaclip2" / "expected.npz")
    output = jax.jit(clip.module.apply)(clip.variables, expected["input_ids"], expected["pixel_values"])
    assert clip.config.text_config.eos_token_id == 2
    assert (expected["input_ids"].argmax(-1) != (expected["input_ids"] == 2).argmax(-1)).all()
    assert_close(output.text_embeds, expected["text_embeds"])
    assert_close(output.logits_per_image, expected["logits_per_image"])


@pytest.mark.parametrize("golden", ["clip-classifier", "siglip-classifier"])
def test_a_classifier_with_the_configuration_of_both_towers_is_a_vision_model(golden):
    backbone = load_backbone(GOLDENS / golden)
    assert backbone.text is None
    assert set(backbone.report.unused) == {"classifier.weight", "classifier.bias"}
    assert backbone.head is None  # it reads the mean of the patches, not the pooled features
    with pytest.raises(ModelError, match=f"{golden}: not a CLIP with both towers: config.json says"):
        load_clip(GOLDENS / golden)
    with pytest.raises(ModelError, match=f"{golden} is a vision model without a text tower"):
        load_backbone(GOLDENS / golden, submodule="vision_model")


@pytest.mark.parametrize(
    ("golden", "extra"),
    [
        ("clip-classifier", {"logit_scale": [1], "visual_projection.weight": [4, 16], "logit_bias": []}),
        ("clip-classifier", {"vision_model.embeddings.position_ids": [1, 17]}),
        ("siglip-classifier", {"logit_scale": [1], "logit_bias": [1], "vision_model.embeddings.position_ids": [1, 16]}),
        ("metaclip2", {"logit_scale": [1], "logit_bias": [1], "text_model.embeddings.position_ids": [1, 8]}),
        ("metaclip2-vision", {"logit_scale": [1], "position_ids": [1, 17]}),
    ],
)
def test_tensors_that_the_vision_tower_does_not_need_are_no_obstacle(tmp_path, golden, extra):
    shutil.copytree(GOLDENS / golden, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {name: np.ones(shape, np.float32) for name, shape in extra.items()}, tmp_path / "model.safetensors"
    )
    ours, plain = load_backbone(tmp_path), load_backbone(GOLDENS / golden)
    assert jax.tree.structure(ours.variables) == jax.tree.structure(plain.variables)
    assert all(map(np.array_equal, jax.tree.leaves(ours.variables), jax.tree.leaves(plain.variables)))


def test_the_parameter_tree_is_that_of_flax_clip_in_transformers_4():
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"vocab_size": 99, "max_position_embeddings": 16}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    module = CLIPModule(from_transformers(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16), jnp.int32), jnp.zeros((1, 32, 32, 3)))
    ours = {path: leaf.shape for path, leaf in flatten_dict(shapes["params"], sep="/").items()}
    lines = (Path(__file__).parent / "flax_clip_tree.txt").read_text().splitlines()[1:]
    theirs = {path: ast.literal_eval(shape) for path, shape in (line.split(" ", 1) for line in lines)}
    assert list(shapes) == ["params"]
    assert ours == theirs


@pytest.mark.parametrize(
    ("eos", "ids", "ends"),
    [
        (2, [[0, 7, 19, 3, 3, 3], [0, 19, 2, 3, 19, 3]], [2, 1]),  # 2 is never produced: the highest id ends the text
        (5, [[0, 7, 19, 5, 1, 1], [0, 5, 19, 5, 5, 5]], [3, 1]),  # a real id: its first place ends the text
    ],
)
def test_text_is_pooled_at_its_end_under_both_rules(eos, ids, ends):
    tower, ids = CLIPTextTransformer(config(eos=eos).text_config), np.array(ids)
    output = jax.jit(tower.apply)(draw(tower, ids), ids)
    expected = output.last_hidden_state[np.arange(2), np.array(ends)]
    np.testing.assert_array_equal(output.pooler_output, expected)


def test_a_text_token_reads_no_later_token_and_no_padding(small):
    module, variables = small
    tower, params = CLIPTextTransformer(module.config.text_config), {"params": variables["params"]["text_model"]}
    apply = jax.jit(tower.apply)
    hidden = apply(params, IDS).last_hidden_state
    changed = apply(params, np.where(np.arange(6) >= 4, 13, IDS)).last_hidden_state
    np.testing.assert_allclose(changed[:, :4], hidden[:, :4], atol=1e-6)
    assert np.abs(changed[:, 4:] - hidden[:, 4:]).max() > 1e-3
    masked = apply(params, IDS, np.array([[1, 1, 0, 1, 1, 1]] * 3)).last_hidden_state
    np.testing.assert_allclose(masked[:, :2], hidden[:, :2], atol=1e-6)
    assert np.abs(masked[:, 3:] - hidden[:, 3:]).max() > 1e-4


def test_the_configured_activation_is_used(vision_params):
    towers = [VisionTransformer(config(activation=name).vision_config) for name in ("quick_gelu", "gelu", "relu")]
    quick, exact, relu = (jax.jit(tower.apply)(vision_params, PIXELS).pooler_output for tower in towers)
    assert np.abs(quick - exact).max() > 1e-4
    assert np.abs(exact - relu).max() > 1e-3


def test_attention_dropout_acts_in_training_alone_and_by_its_key(vision_params):
    dropping = VisionTransformer(config(dropout=0.5).vision_config)

    @jax.jit
    def train(seed):
        return dropping.apply(vision_params, PIXELS, train=True, rngs={"dropout": jax.random.key(seed)}).pooler_output

    plain = VisionTransformer(config().vision_config)
    trained_plain = jax.jit(lambda v: plain.apply(v, PIXELS, train=True).pooler_output)(vision_params)
    evaluated = jax.jit(dropping.apply)(vision_params, PIXELS).pooler_output
    a, again, b = train(1), train(1), train(2)
    np.testing.assert_array_equal(evaluated, trained_plain)
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - evaluated).max() > 1e-3
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.slow
def test_gradient_flows_to_every_leaf(small):
    module, variables = small
    weights = jax.random.normal(jax.random.key(3), (2, 3))

    def loss(params):
        return (module.apply({"params": params}, IDS, PIXELS).logits_per_image * weights).sum()

    for path, gradient in flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/").items():
        size = np.abs(gradient).max()
        assert np.isfinite(size), path
        if path.endswith("k_proj/bias"):  # softmax does not see what is added to all keys alike
            assert size < 1e-4, path
        else:
            assert size > 1e-6, path


def test_logits_are_cosines_times_the_exponential_of_the_scale(small):
    module, variables = small
    output = jax.jit(module.apply)(variables, IDS, PIXELS)
    np.testing.assert_allclose(np.linalg.norm(output.image_embeds, axis=-1), 1, rtol=1e-5)
    cosines = np.asarray(output.image_embeds) @ np.asarray(output.text_embeds).T
    scale = np.exp(np.asarray(variables["params"]["logit_scale"]))
    np.testing.assert_allclose(output.logits_per_image, scale * cosines, atol=1e-4)
