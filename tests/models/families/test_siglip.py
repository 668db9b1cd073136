import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from closeness import assert_close
from flax.traverse_util import flatten_dict
from paths import GOLDENS
from tokenizers import models, normalizers, processors

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone, load_clip
from finetune.models.families.siglip import SiglipTextTransformer
from finetune.models.zero_shot import zero_shot_head

GOLDEN = GOLDENS / "siglip"


@pytest.fixture(scope="module")
def siglip():
    return load_clip(GOLDEN)


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(GOLDEN / "expected.npz"))


@pytest.fixture(scope="module")
def text(siglip):
    """What the text tower makes of tokens and, where there is one, a mask."""
    return jax.jit(lambda *arguments: siglip.module.apply(siglip.variables, *arguments, method="get_text_features"))


@pytest.fixture(scope="module")
def outputs(siglip, expected):
    @jax.jit
    def compute(variables, ids, pixels):
        image_features = siglip.module.apply(variables, pixels, method="get_image_features")
        return siglip.module.apply(variables, ids, pixels), image_features

    return compute(siglip.variables, expected["input_ids"], expected["pixel_values"])


def test_both_towers_agree_with_pytorch(outputs, expected):
    output, image_features = outputs
    assert_close(output.vision_model_output.last_hidden_state, expected["last_hidden_state"])
    assert_close(output.vision_model_output.pooler_output, expected["pooler_output"])
    assert_close(output.text_model_output.pooler_output, expected["text_pooler_output"])
    assert_close(output.image_embeds, expected["image_embeds"])
    assert_close(output.text_embeds, expected["text_embeds"])
    assert_close(output.logits_per_image, expected["logits_per_image"])
    assert_close(output.logits_per_text, expected["logits_per_image"].T)
    assert_close(image_features, expected["pooler_output"])


def test_text_features_agree_with_pytorch(text, expected):
    assert_close(text(expected["input_ids"]), expected["text_pooler_output"])


def test_logits_are_cosines_times_the_exponential_of_the_scale_plus_the_bias(siglip, outputs):
    output, params = outputs[0], siglip.variables["params"]
    np.testing.assert_allclose(np.linalg.norm(output.text_embeds, axis=-1), 1, rtol=1e-5)
    cosines = np.asarray(output.image_embeds) @ np.asarray(output.text_embeds).T
    expected = np.exp(np.asarray(params["logit_scale"])) * cosines + np.asarray(params["logit_bias"])
    np.testing.assert_allclose(output.logits_per_image, expected, atol=1e-5)


def test_the_temperature_and_the_bias_are_scalars(siglip):
    assert siglip.variables["params"]["logit_scale"].shape == siglip.variables["params"]["logit_bias"].shape == ()


def test_text_is_read_at_its_last_token_and_every_token_reads_every_other(text, expected):
    ids = expected["input_ids"]
    pooled = text(ids)
    for place in (0, ids.shape[1] - 1):  # the padding is read too, as in training
        changed = ids.copy()
        changed[:, place] = 7
        assert np.abs(text(changed) - pooled).max(axis=-1).min() > 1e-3


def test_a_mask_hides_what_it_is_asked_to_hide(text, expected):
    ids, mask = expected["input_ids"], np.ones_like(expected["input_ids"])
    np.testing.assert_allclose(text(ids, mask), text(ids), atol=1e-6)
    mask[:, 2] = 0
    changed = ids.copy()
    changed[:, 2] = 7
    np.testing.assert_allclose(text(ids, mask), text(changed, mask), atol=1e-6)


def test_the_text_tower_projects_to_the_width_that_is_asked_for(siglip, expected):
    tower = SiglipTextTransformer(replace(siglip.config.text_config, projection_size=24))
    shapes = jax.eval_shape(tower.init, jax.random.key(0), expected["input_ids"])
    assert shapes["params"]["head"]["kernel"].shape == (16, 24)


@pytest.mark.slow
def test_gradient_flows_to_every_leaf(siglip, expected):
    weights = jax.random.normal(jax.random.key(3), (2, 3))

    def loss(params):
        output = siglip.module.apply({"params": params}, expected["input_ids"], expected["pixel_values"])
        return (output.logits_per_image * weights).sum()

    for path, gradient in flatten_dict(jax.jit(jax.grad(loss))(siglip.variables["params"]), sep="/").items():
        size = np.abs(gradient).max()
        assert np.isfinite(size), path
        if path.endswith("k_proj/bias"):  # softmax does not see what is added to all keys alike
            assert size < 1e-4, path
        else:
            assert size > 1e-6, path


class Tokenizer:
    """Digits after the last comma, filled up; no mask, as SigLIP's own."""

    def __call__(self, texts, *, max_length, **_):
        rows = [[int(n) for n in text.rsplit(",")[-1].split()] for text in texts]
        return {"input_ids": np.array([row + [1] * (max_length - len(row)) for row in rows])}


def test_the_zero_shot_head_answers_as_siglip(expected):
    backbone = load_backbone(GOLDEN)
    backbone.text.__dict__["tokenizer"] = Tokenizer()  # the reference checkpoint has none
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 62, (6, 8))
    pixels = jnp.asarray(rng.standard_normal((32, 32, 32, 3)), jnp.float32)
    whole = jax.jit(backbone.text.module.apply)(backbone.text.variables, ids, pixels)
    features = jax.jit(backbone.module.apply)(backbone.variables, pixels).pooler_output
    head = zero_shot_head(backbone, [" ".join(map(str, row)) for row in ids], ["a photo of, {}"], features)
    answers = whole.logits_per_image.argmax(-1)
    np.testing.assert_array_equal((features @ head).argmax(-1), answers)
    assert len(np.unique(answers)) > 1


@pytest.fixture
def siglip2(tmp_path):
    """A SigLIP with a tokenizer in the form of SigLIP 2's: Gemma's, with lower-casing in tokenizer.json."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "c", "A", "B", "C", "\u2581"]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "\u2581")])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.add_special_tokens(words[:4])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    special = {f"{word.strip('<>')}_token": word for word in words[:4]}
    options = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    settings = {"tokenizer_class": "GemmaTokenizer", **special, **options}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_texts_of_siglip_2_are_lower_cased_ended_and_padded_to_full_length_without_a_mask(siglip2):
    clip = load_clip(siglip2)
    ids = np.array([[4, 5, 10, 6, 1, 0, 0, 0], [4, 4, 4, 4, 4, 4, 4, 1]])  # of 8 tokens; the last of them ends
    features = clip.module.apply(clip.variables, ids, method="get_text_features")
    embeds = clip.embed_texts(["aB C", "A" * 50])
    np.testing.assert_allclose(embeds, features / np.linalg.norm(features, axis=-1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("model_type", ["siglip2", "siglip2_vision_model"])
def test_naflex_is_refused(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelError, match=rf"model_type '{model_type}' is not supported: a SigLIP 2 of the NaFlex kind"):
        load_backbone(tmp_path)
