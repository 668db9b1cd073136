import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from paths import GOLDENS
from safetensors.numpy import load_file, save_file
from seeded import seeded

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone, load_clip
from finetune.models.build import build_module, describe
from finetune.models.families import clip_resnet, open_clip
from finetune.models.families.convnext import ConvNeXtModule
from finetune.models.layers.text import canonicalize
from finetune.models.zero_shot import zero_shot_head
from finetune.weights.layout import open_checkpoint

OWN_TOWERS = ["open-clip", "open-clip-options", "open-clip-eos", "open-clip-resnet"]


@pytest.fixture(scope="module")
def convnext(tmp_path_factory):
    """A checkpoint with a tower of timm, which is too large to be kept."""
    folder, golden = tmp_path_factory.mktemp("convnext"), GOLDENS / "open-clip-convnext"
    shapes = json.loads((golden / "shapes.json").read_text())
    save_file({name: seeded(name, tuple(s)) for name, s in shapes.items()}, folder / "open_clip_model.safetensors")
    for name in ("open_clip_config.json", "expected.npz"):
        (folder / name).write_bytes((golden / name).read_bytes())
    return folder


@pytest.fixture(params=[*OWN_TOWERS, pytest.param("open-clip-convnext", marks=pytest.mark.slow)])
def golden(request):
    own = request.param in OWN_TOWERS
    return GOLDENS / request.param if own else request.getfixturevalue("convnext")


def read(model, names=()):
    """The reading of a ``model_cfg``."""
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}, **model}}
    vision = config["model_cfg"]["vision_cfg"]
    if isinstance(vision.get("layers"), list):
        return clip_resnet.FAMILY.readers[0].read(config, names)
    kind = "open_clip_timm" if vision.get("timm_model_name") else "open_clip"
    return open_clip.FAMILY.reader("open_clip", kind).read(config, names)


def test_both_towers_agree_with_pytorch(golden):
    clip, expected = load_clip(golden), np.load(golden / "expected.npz")
    output = jax.jit(clip.module.apply)(clip.variables, expected["input_ids"], expected["pixel_values"])
    assert clip.report.fresh == ()
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        if name in expected:
            assert_close(getattr(output, name), expected[name])


def test_the_image_tower_with_quick_gelu_agrees_with_pytorch(goldens):
    folder = goldens / "open-clip"  # open_clip itself does not give the text_embeds of this one again
    clip, expected = load_clip(folder), np.load(folder / "expected.npz")
    features = jax.jit(partial(clip.module.apply, method="get_image_features"))(
        clip.variables, expected["pixel_values"]
    )
    assert_close(features / jnp.linalg.norm(features, axis=-1, keepdims=True), expected["image_embeds"])


@pytest.mark.parametrize("name", ["open-clip-resnet", "open-clip-timm"])
def test_the_text_tower_beside_another_vision_tower_agrees_with_pytorch(goldens, name):
    clip, expected = load_clip(goldens / name), np.load(goldens / name / "expected.npz")
    features = jax.jit(partial(clip.module.apply, method="get_text_features"))(clip.variables, expected["input_ids"])
    assert_close(features / jnp.linalg.norm(features, axis=-1, keepdims=True), expected["text_embeds"])


def test_at_another_size_it_agrees_with_pytorch():
    clip, expected = load_clip(GOLDENS / "open-clip", image_size=48), np.load(GOLDENS / "open-clip" / "expected.npz")
    output = jax.jit(clip.module.apply)(clip.variables, expected["input_ids"], expected["pixel_values_48"])
    assert_close(output.image_embeds, expected["image_embeds_48"])
    assert_close(output.text_embeds, expected["text_embeds"])
    assert clip.report.resized == ("params/vision_model/embeddings/position_embedding/embedding",)


# Parameters of open_clip's models, counted in PyTorch, and numbers of running statistics.
TEXT = {"context_length": 77, "vocab_size": 49408}
H14 = {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}
BIG_G14 = {"image_size": 224, "layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14}
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
BERT = {"context_length": 32, "vocab_size": 32000, "hf_tokenizer_name": "bert-base-uncased"}
XLM = {"hf_tokenizer_name": "facebook/xlm-v-base", "pool_type": "eos", "eos_id": 2, "vocab_size": 901629}
SIGLIP = {"context_length": 64, "vocab_size": 256000, "width": 768, "heads": 12, "proj_bias": True}
CANONICAL = {"tokenizer_kwargs": {"clean": "canonicalize"}, "pool_type": "last", "no_causal_mask": True}
PUBLISHED = {
    "ViT-H-14": (1024, H14, TEXT | {"width": 1024, "heads": 16, "layers": 24}, 986_109_441, 0),
    "ViT-bigG-14": (1280, BIG_G14, TEXT | {"width": 1280, "heads": 20, "layers": 32}, 2_539_567_105, 0),
    "ViT-L-14-336": (
        768,
        {"image_size": 336, "layers": 24, "width": 1024, "patch_size": 14},
        TEXT | {"width": 768, "heads": 12, "layers": 12},
        427_944_193,
        0,
    ),
    "ViT-H-14-CLIPA-336": (
        1024,
        H14 | CLIPA | {"image_size": 336},
        BERT | {"width": 1024, "heads": 16, "layers": 24, "pool_type": "last", "no_causal_mask": True},
        968_644_609,
        0,
    ),
    "ViT-H-14-worldwide": (1024, H14, XLM | {"width": 1024, "heads": 16, "layers": 24}, 1_858_783_745, 0),
    "RN50": (
        1024,
        {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
        TEXT | {"width": 512, "heads": 8, "layers": 12},
        102_007_137,
        53_248,
    ),
    "RN50x64": (
        1024,
        {"image_size": 448, "layers": [3, 15, 36, 10], "width": 128, "patch_size": None},
        TEXT | {"width": 1024, "heads": 16, "layers": 12},
        623_258_305,
        410_624,
    ),
    "convnext_base_w": (
        640,
        {"timm_model_name": "convnext_base", "timm_pool": "", "timm_proj": "linear", "image_size": 256},
        TEXT | {"width": 640, "heads": 10, "layers": 12},
        179_385_345,
        0,
    ),
    "swin_base_patch4_window7_224": (
        640,
        {"timm_model_name": "swin_base_patch4_window7_224", "timm_pool": "", "timm_proj": "linear"},
        TEXT | {"width": 640, "heads": 10, "layers": 12},
        178_562_105,
        0,
    ),
    "ViT-B-16-SigLIP2": (
        768,
        {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"},
        SIGLIP | CANONICAL | {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
        375_187_970,
        0,
    ),
}
# What timm's ViT reader infers from the tensors.
SIGLIP_NAMES = {"patch_embed.proj.bias", "blocks.0.attn.qkv.bias", "attn_pool.latent"}


QUICK = {"ViT-bigG-14", "ViT-B-16-SigLIP2"}  # the others are left to CI


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
@pytest.mark.slow
def test_a_published_configuration_gives_the_published_number_of_parameters(name):
    width, vision, text, parameters, statistics = PUBLISHED[name]
    names = {f"visual.trunk.{n}" for n in SIGLIP_NAMES} | {"logit_bias"} if "SigLIP" in name else set()
    reading = read({"embed_dim": width, "vision_cfg": vision, "text_cfg": text}, names)
    tower = (reading.tower or clip_resnet.FAMILY).module
    size = vision.get("image_size", 224)
    module = open_clip.CLIPModule(reading.config, vision_class=tower)
    texts, images = jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), texts, images)
    counts = {kind: sum(leaf.size for leaf in jax.tree.leaves(tree)) for kind, tree in shapes.items()}
    assert counts["params"] == parameters
    assert counts.get("batch_stats", 0) == statistics


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"vision_cfg": {"attentional_pool": True}}, r"model_cfg\.vision_cfg: not supported: attentional_pool"),
        ({"vision_cfg": {"pos_embed_type": "sin_cos_2d"}}, r"model_cfg\.vision_cfg: not supported: pos_embed_type"),
        ({"vision_cfg": {"pool_type": "none"}}, "vision_cfg: pool_type: 'none' is not supported"),
        ({"vision_cfg": {"image_size": [224, 256]}}, "vision_cfg: image_size: only squares are supported"),
        ({"vision_cfg": {"layers": [1, 1], "attentional_pool": True}}, "not supported: attentional_pool"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, r"model_cfg\.text_cfg: not supported: hf_model_name"),
        ({"text_cfg": {"embed_cls": True}}, "text_cfg: not supported: embed_cls"),
        ({"text_cfg": {"pool_type": "none"}}, "text_cfg: pool_type: 'none' is not supported"),
        ({"text_cfg": {"proj_type": "mlp"}}, "text_cfg: proj_type: 'mlp' is not supported"),
        ({"text_cfg": {"tokenizer_kwargs": {"language": "de"}}}, "text_cfg: tokenizer_kwargs: .*language"),
        ({"text_cfg": {"norm_kwargs": {"elementwise_affine": False}}}, r"text_cfg: not supported: norm_kwargs \{'el"),
        ({"text_cfg": {"act_kwargs": {"approximate": "tanh"}}, "quick_gelu": True}, "act_kwargs .* with quick_gelu"),
        ({"multimodal_cfg": {"width": 8}}, "model_cfg: not supported: multimodal_cfg"),
        ({"vision_cfg": {"timm_model_name": "vitamin_small_224"}}, "timm_model_name: 'vitamin_small_224' is not supp"),
        ({"vision_cfg": {"timm_model_name": "resnet50", "timm_proj": "mlp"}}, "only timm_proj 'linear' .* 'mlp'"),
        ({"vision_cfg": {"timm_model_name": "resnet50", "timm_proj": None}}, "only timm_proj 'linear' .* None"),
        ({"vision_cfg": {"timm_model_name": "resnet50", "timm_proj_bias": True}}, "received 'linear' with a bias"),
        ({"vision_cfg": {"timm_model_name": "resnet50", "timm_pool": "abs_attn"}}, "global_pool: .* 'abs_attn'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_supported_is_refused_by_its_name(model, message):
    with pytest.raises(ModelError, match=message):
        read(model)


def test_settings_that_change_nothing_are_accepted():
    vision = {"ls_init_value": None, "patch_dropout": 0.5, "pos_embed_type": "learnable", "timm_pool": "avg"}
    text = {"hf_tokenizer_name": "", "pad_id": 1, "output_tokens": True, "hf_pooler_type": "mean_pooler"}
    assert read({"vision_cfg": vision, "text_cfg": text}) == read({})


@pytest.mark.slow
def test_a_tower_of_timm_is_that_of_its_own_family(convnext):
    backbone, expected = load_backbone(convnext), np.load(convnext / "expected.npz")
    assert isinstance(backbone.module, ConvNeXtModule)
    assert backbone.family == "convnext"
    assert (backbone.image_spec.height, backbone.image_spec.width) == (64, 64)
    assert build_module(**json.loads(json.dumps(describe(backbone)))) == backbone.module
    pooled = jax.jit(backbone.module.apply)(backbone.variables, expected["pixel_values"]).pooler_output
    embeds = pooled @ backbone.text.image_projection
    assert_close(embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True), expected["image_embeds"])


class Tokenizer:
    """The numbers in a text, filled up with zeros; remembers the texts."""

    sep_token_id = 7

    def __call__(self, texts, *, max_length, **_):
        self.texts = texts
        rows = [[int(n) for n in text.rsplit(",")[-1].split() if n.isdigit()] for text in texts]
        return {"input_ids": np.array([row + [0] * (max_length - len(row)) for row in rows])}


@pytest.mark.parametrize("name", ["open-clip-resnet", "open-clip-options"])
def test_the_zero_shot_head_answers_as_the_whole_model(name):
    backbone = load_backbone(GOLDENS / name)
    backbone.text.__dict__["tokenizer"] = Tokenizer()  # the reference checkpoints have none
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 64, (6, 8))
    size = backbone.image_spec.height
    pixels = jnp.asarray(rng.standard_normal((32, size, size, 3)), jnp.float32)
    whole = jax.jit(backbone.text.module.apply)(backbone.text.variables, ids, pixels)
    features = jax.jit(backbone.module.apply)(backbone.variables, pixels).pooler_output
    head = zero_shot_head(backbone, [" ".join(map(str, row)) for row in ids], ["{}"], features)
    np.testing.assert_array_equal((features @ head).argmax(-1), whole.logits_per_image.argmax(-1))


def test_texts_are_cleaned_and_separators_removed_where_the_configuration_says_so(tmp_path):
    golden = GOLDENS / "open-clip-options"
    config = json.loads((golden / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize", "strip_sep_token": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(load_file(golden / "open_clip_model.safetensors"), tmp_path / "model.safetensors")
    plain, clip = load_clip(golden), load_clip(tmp_path)
    for model in (plain, clip):
        model.__dict__["tokenizer"] = Tokenizer()
    cleaned = clip.embed_texts(["Five 5, SIX_6 7"])
    assert clip.tokenizer.texts == ["five 5 six 6 7"]
    np.testing.assert_allclose(cleaned, plain.embed_texts(["5 6 0"]), atol=1e-6)


def test_canonical_texts_are_lower_case_without_punctuation():
    assert canonicalize("  A photo, of a Golden_Retriever's\n  (dog)! ") == "a photo of a golden retrievers dog"


@pytest.mark.parametrize(
    ("vision", "kind"),
    [
        ({"layers": 12}, "open_clip"),
        ({"layers": [3, 4, 6, 3]}, "open_clip_resnet"),
        ({"timm_model_name": "convnext_base", "layers": 12}, "open_clip_timm"),
        ({"timm_model_name": None}, "open_clip"),
    ],
)
def test_a_checkpoint_is_read_by_its_vision_tower(tmp_path, vision, kind):
    model = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    assert open_checkpoint(tmp_path).model_type == kind
