"""Maps of where a classifier finds its answer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDENS

import finetune
from finetune.errors import DataError
from finetune.export.bundle import Bundle
from finetune.images.spec import ImageSpec
from finetune.inference.explain import Explainer, grad_cam, rollout
from finetune.inference.predictor import Predictor
from finetune.models.classifier import Classifier
from finetune.models.layers.base import BackboneOutput
from finetune.models.registry import FAMILIES

SPEC = ImageSpec(6, 6, None, "bilinear", (0.5,) * 3, (0.25,) * 3)
EXAMPLES = {  # of each family, the smallest checkpoint here, and the map that suits it
    "clip": ("clip-vision-interpolated", "attention rollout"),
    "clip_resnet": ("open-clip-resnet", "Grad-CAM"),
    "siglip": ("siglip", "attention rollout"),
    "vit": ("vit", "attention rollout"),
    "dinov2": ("dinov2-registers", "attention rollout"),
    "dinov3": ("dinov3-step", "attention rollout"),
    "eva02": ("timm-eva02-step", "attention rollout"),
    "pe_core": ("timm-pe-core-step", "attention rollout"),
    "tipsv2": ("tipsv2", "attention rollout"),
    "aimv2": ("aimv2-step", "attention rollout"),
    "beit": ("beit-step", "attention rollout"),
    "vit_mae": ("vit-mae", "attention rollout"),
    "ijepa": ("ijepa", "attention rollout"),
    "swin": ("swin-step", "Grad-CAM"),
    "resnet": ("timm-resnext", "Grad-CAM"),
    "convnext": ("dinov3-convnext", "Grad-CAM"),
    "mobilenet_v2": ("mobilenet-v2", "Grad-CAM"),
    "efficientnet": ("efficientnet-step", "Grad-CAM"),
}


def predictor_of(classifier, variables, spec, classes=3):
    return Predictor(Bundle(classifier, variables, tuple(f"class {i}" for i in range(classes)), spec))


def image_of(spec, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (spec.height, spec.width, 3), np.uint8)


def random_attention(rng, heads, tokens):
    weights = rng.random((heads, tokens, tokens))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def test_rollout_is_the_product_of_attention_with_shortcuts():
    rng = np.random.default_rng(0)
    blocks = [random_attention(rng, 2, 5) for _ in range(3)]
    first, second, third = (0.5 * block.mean(0) + 0.5 * np.eye(5) for block in blocks)
    found = np.asarray(rollout([jnp.asarray(block) for block in blocks]))
    np.testing.assert_allclose(found, third @ second @ first, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_grad_cam_weighs_channels_with_their_mean_gradient():
    rng = np.random.default_rng(1)
    features, gradient = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    expected = np.zeros((4, 3))
    for channel in range(5):
        expected += features[..., channel] * gradient[..., channel].mean()
    found = np.asarray(grad_cam(jnp.asarray(features), jnp.asarray(gradient)))
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-6)
    assert 0 < (found > 0).mean() < 1


class Linear(nn.Module):
    """A pointwise convolution, then the mean over positions."""

    @nn.compact
    def __call__(self, images):
        return nn.Conv(4, (1, 1), use_bias=False, name="conv")(images).mean((1, 2))


@pytest.mark.slow
def test_of_a_linear_network_it_is_each_pixels_own_logit():
    classifier = Classifier(Linear(), 3)
    rng = np.random.default_rng(2)
    conv, head = rng.normal(size=(1, 1, 3, 4)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    params = {"backbone": {"conv": {"kernel": conv}}, "head": {"kernel": head, "bias": np.zeros(3, np.float32)}}
    explainer = Explainer(predictor_of(classifier, {"params": params}, SPEC))
    assert explainer.method == "Grad-CAM"
    image = image_of(SPEC)
    for index in range(3):
        logits = np.maximum(SPEC.normalize(image) @ conv[0, 0] @ head[:, index], 0)
        assert logits.any()
        np.testing.assert_allclose(explainer.explain(image, index), logits / logits.max(), atol=1e-5)
    for missing in (-1, 3):
        with pytest.raises(IndexError, match=f"a class from 0 to 2; received {missing}"):
            explainer.explain(image, missing)


@pytest.mark.slow
def test_a_transformers_rollout_is_that_of_its_queries_and_keys(tiny_clip):
    classifier, variables = finetune.build_classifier(tiny_clip, 3, head_init="lecun_normal")
    spec, config = tiny_clip.image_spec, tiny_clip.config
    image = image_of(spec)

    def capture(images):
        call = {"capture_intermediates": True, "mutable": ["intermediates"]}
        return tiny_clip.module.apply(tiny_clip.variables, images, **call)[1]["intermediates"]

    layers = jax.jit(capture)(spec.normalize(image[None]))["encoder"]["layers"]
    joint = np.eye(1 + config.grid**2)
    for number in range(config.num_hidden_layers):
        parts = (layers[str(number)]["self_attn"][name]["__call__"][0][0] for name in ("q_proj", "k_proj"))
        q, k = (np.asarray(part).reshape(len(joint), config.num_attention_heads, -1) for part in parts)
        weights = jax.nn.softmax(np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]), axis=-1)
        joint = (0.5 * np.asarray(weights).mean(0) + 0.5 * np.eye(len(joint))) @ joint
    patches = joint[0, 1:].reshape(config.grid, config.grid)
    expected = np.asarray(jax.image.resize(patches, (spec.height, spec.width), "bilinear"))
    expected = (expected - expected.min()) / np.ptp(expected)
    explainer = Explainer(predictor_of(classifier, variables, spec))
    assert explainer.method == "attention rollout"
    np.testing.assert_allclose(explainer.explain(image, 0), expected, atol=1e-4)


def families():
    """Those that have modules of their own; open_clip's are others'."""
    names = sorted({family.name for family in FAMILIES} - {"open_clip"})
    return [pytest.param(name, marks=[pytest.mark.long] if name == "mobilenet_v2" else []) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_every_family_has_a_map(family):
    name, method = EXAMPLES[family]
    backbone = finetune.load_backbone(GOLDENS / name)
    assert backbone.family == family
    classifier, variables = finetune.build_classifier(backbone, 3, head_init="lecun_normal")
    explainer = Explainer(predictor_of(classifier, variables, backbone.image_spec))
    assert explainer.method == method
    heats = [explainer.explain(image_of(backbone.image_spec), index) for index in range(3)]
    for heat in heats:
        assert heat.shape == backbone.image_spec.shape[:2]
        assert heat.dtype == np.float32
        assert heat.min() >= 0
        assert heat.max() == pytest.approx(1) or (method == "Grad-CAM" and not heat.any())
    assert any(heat.any() for heat in heats)
    assert np.array_equal(heats[0], heats[1]) == (method == "attention rollout")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_rollout_follows_what_the_classifier_pools(pool):
    backbone = finetune.load_backbone(GOLDENS / "vit")
    maps = []
    for chosen in (pool, None):
        classifier, variables = finetune.build_classifier(backbone, 3, pool=chosen)
        maps.append(Explainer(predictor_of(classifier, variables, backbone.image_spec)).explain(image_of(SPEC), 0))
    assert np.array_equal(*maps) == (pool == "cls")  # the pooler, too, reads the class token


class Patches(nn.Module):
    """A transformer of other people's: its only feature map is the patch embedding."""

    @nn.compact
    def __call__(self, images):
        tokens = nn.Conv(4, (2, 2), (2, 2), name="patches")(images).reshape(len(images), -1, 4)
        tokens = nn.Dense(4, name="mix")(tokens)
        return BackboneOutput(tokens, tokens[:, 0])


class Recomputed(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.remat(nn.Conv)(4, (3, 3), name="conv")(images).mean((1, 2))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Conv(4, (3, 3), name="conv")(x), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(4, (3, 3), name="stem")(images)
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return blocks(name="blocks")(x, None)[0].mean((1, 2))


class Flat(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(4, name="dense")(images.reshape(len(images), -1))


@pytest.mark.slow
@pytest.mark.parametrize("module", [Patches(), Flat()])
def test_a_module_without_a_last_feature_map_has_the_pixels_that_its_logit_depends_on(module):
    classifier = Classifier(module, 3)
    variables = classifier.init(jax.random.key(0), jnp.zeros((1, *SPEC.shape)))
    kernel = jax.random.normal(jax.random.key(1), variables["params"]["head"]["kernel"].shape)
    variables["params"]["head"]["kernel"] = kernel
    explainer, image = Explainer(predictor_of(classifier, variables, SPEC)), image_of(SPEC)
    assert explainer.method == "gradient x input"
    pixels = SPEC.normalize(image[None])
    gradient = jax.grad(lambda pixels: classifier.apply(variables, pixels)[0, 2])(pixels)
    expected = np.abs((np.asarray(gradient) * pixels)[0].sum(-1))
    np.testing.assert_allclose(explainer.explain(image, 2), expected / expected.max(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("module", [Recomputed(), Scanned()])
def test_layers_that_are_recomputed_or_scanned_have_a_map(module, tmp_path):
    classifier = Classifier(module, 3)
    variables = classifier.init(jax.random.key(0), jnp.zeros((1, *SPEC.shape)))
    variables["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(1), (4, 3))
    explainer = Explainer(predictor_of(classifier, variables, SPEC))
    assert explainer.method == "Grad-CAM"
    assert explainer.explain(image_of(SPEC), 0).max() == pytest.approx(1)
    with pytest.raises(IndexError, match="index: a class from 0 to 2; received 3"):
        explainer.explain(image_of(SPEC), 3)
    with pytest.raises(DataError, match="no such file"):
        explainer.explain(tmp_path / "x.png", 0)
