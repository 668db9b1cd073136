import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone
from finetune.models.zero_shot import text_classifier, zero_shot_head

NAMES = [str(digit) for digit in range(10)]
TEMPLATES = ["a photo of the digit {}", "the letter {}"]


@pytest.fixture(scope="module")
def pictures():
    """float32 [96, 32, 32, 3]: noise of several grains, so that CLIP's answers differ."""
    rng = np.random.default_rng(0)
    grains = [rng.standard_normal((32, n, n, 3)).repeat(32 // n, 1).repeat(32 // n, 2) for n in (2, 4, 8)]
    return jnp.asarray(np.concatenate(grains), jnp.float32)


@pytest.fixture(scope="module")
def features(tiny_clip, pictures):
    return jax.jit(tiny_clip.module.apply)(tiny_clip.variables, pictures).pooler_output


@pytest.fixture(scope="module")
def outputs(tiny_clip, pictures):
    """What the whole CLIP module says of the pictures and of each template's ten prompts."""
    clip = tiny_clip.text
    prompts = [template.format(name) for template in TEMPLATES for name in NAMES]
    length = clip.config.text_config.max_position_embeddings
    tokens = clip.tokenizer(prompts, padding="max_length", max_length=length, return_tensors="np")
    arguments = (tokens["input_ids"], pictures, tokens["attention_mask"])
    return jax.jit(clip.module.apply)(clip.variables, *arguments)


def test_with_one_template_the_head_answers_as_clip(tiny_clip, features, outputs):
    expected = outputs.logits_per_image[:, :10].argmax(-1)
    ours = features @ zero_shot_head(tiny_clip, NAMES, TEMPLATES[:1], features)
    np.testing.assert_array_equal(ours.argmax(-1), expected)
    assert len(np.unique(expected)) > 2  # one class for all would prove little


def test_with_several_templates_the_head_answers_as_clip_with_their_mean(tiny_clip, features, outputs):
    classes = np.asarray(outputs.text_embeds).reshape(2, 10, -1).mean(axis=0)
    classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
    expected = (np.asarray(outputs.image_embeds) @ classes.T).argmax(-1)
    ours = features @ zero_shot_head(tiny_clip, NAMES, TEMPLATES, features)
    np.testing.assert_array_equal(ours.argmax(-1), expected)
    assert (expected != outputs.logits_per_image[:, :10].argmax(-1)).any()  # the second template matters


def test_for_the_image_that_sets_the_norm_the_logits_are_clips_own(tiny_clip, features, outputs):
    expected = outputs.logits_per_image[:1, :10]
    ours = features[:1] @ zero_shot_head(tiny_clip, NAMES, TEMPLATES[:1], features[:1])
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_text_embeddings_are_unit_vectors_and_long_texts_are_cut(tiny_clip):
    embeds = tiny_clip.text.embed_texts(["the digit seven", "seven " * 100])
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=-1), [1, 1], rtol=1e-5)


def test_a_checkpoint_without_a_text_tower_makes_no_zero_shot_head(goldens):
    backbone = load_backbone(goldens / "clip-vision-only")
    with pytest.raises(ModelError, match="needs a text tower"):
        zero_shot_head(backbone, ["a", "b"], ["{}"], jnp.zeros((1, 64)))


ODD_NAMES = [
    ["a\0b", "c"],
    ["x" * 100_000, "y " * 100_000],
    ["\U0010ffff", "\x1b[31m"],
    ["{}", "{0}"],
    ["<|endoftext|>", ""],
]


@pytest.mark.slow
@pytest.mark.parametrize("names", ODD_NAMES, ids=lambda names: ascii(names[0][:20]))
def test_class_names_of_any_characters_and_length_have_a_direction(tiny_clip, names):
    classes = text_classifier(tiny_clip, names, ["a photo of {}"]).classes
    assert classes.shape[1] == 2
    assert jnp.isfinite(classes).all()


@pytest.mark.parametrize("name", ["dog\ud800", 7, None], ids=ascii)
def test_a_class_name_that_is_no_text_is_named(tiny_clip, name):
    with pytest.raises(ModelError, match="not a text that can be tokenized"):
        tiny_clip.text.embed_texts(["cat", name])
