import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from finetune.errors import ModelError
from finetune.images.spec import ImageSpec
from finetune.weights.layout import Checkpoint
from finetune.weights.preprocessor import from_processor, read_image_spec

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
UINT8 = {"do_rescale": False, "do_normalize": False}
FOLDERS = {
    "CLIP": "clip",
    "Siglip": "siglip",
    "ViT": "vit",
    "DeiT": "deit",
    "Bit": "bit",
    "ConvNext": "convnext",
    "MobileNetV2": "mobilenet_v2",
}
SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
SETTINGS = [
    *((kind, {}) for kind in FOLDERS),  # ConvNext's own size is 384: the whole image, squeezed
    ("CLIP", SMALL),
    ("CLIP", {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 32}}),  # black edges
    ("CLIP", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}, "resample": 2}),
    ("CLIP", {"size": {"height": 20, "width": 24}, "do_center_crop": False}),
    ("CLIP", {"do_resize": False, "crop_size": {"height": 32, "width": 32}}),
    ("CLIP", {**SMALL, "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 0.5, 0.25]}),
    ("CLIP", {**SMALL, "do_normalize": False}),
    ("Siglip", {"size": {"height": 28, "width": 36}}),
    ("ViT", {"size": {"height": 28, "width": 36}, "resample": 3}),
    ("DeiT", {"size": {"height": 32, "width": 36}, "crop_size": {"height": 28, "width": 24}}),
    ("Bit", SMALL),
    ("ConvNext", {"size": {"shortest_edge": 28}}),
    ("ConvNext", {"size": {"shortest_edge": 33}, "crop_pct": 0.9, "resample": 3}),
    ("ConvNext", {"size": {"shortest_edge": 383}, "crop_pct": 0.95}),
    ("ConvNext", {"size": {"shortest_edge": 385}, "crop_pct": 0.95}),
    ("MobileNetV2", SMALL),
]


def photo(width, height):
    """Smooth colours with grain on them."""
    rng = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


PHOTOS = [photo(97, 61), photo(61, 97), photo(45, 45)]


def processor(kind, **settings):
    """transformers' own image processor of that kind that needs no PyTorch."""
    package = f"transformers.models.{FOLDERS[kind]}.image_processing_"
    try:
        module, name = importlib.import_module(f"{package}pil_{FOLDERS[kind]}"), f"{kind}ImageProcessorPil"
    except ImportError:  # transformers 4.57 has it under another name
        module, name = importlib.import_module(package + FOLDERS[kind]), f"{kind}ImageProcessor"
    return getattr(module, name)(**settings)


def theirs(kind, image, **settings):
    return processor(kind, **settings)(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


def saved(kind, **settings):
    """What transformers writes into the file."""
    return json.loads(json.dumps(processor(kind, **settings).to_dict()))


@pytest.mark.parametrize(("kind", "settings"), SETTINGS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_images_are_those_of_transformers_bit_for_bit(kind, settings):
    spec = from_processor(saved(kind, **settings), "here")
    for image in PHOTOS:
        expected = theirs(kind, image, **{**settings, **UINT8})
        ours = spec.to_uint8(image)
        assert ours.dtype == expected.dtype == np.uint8
        assert ours.shape == (spec.height, spec.width, 3)
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("kind", "settings"), SETTINGS[len(FOLDERS) :], ids=lambda value: getattr(value, "__name__", str(value))
)
def test_normalized_images_are_those_of_transformers(kind, settings):
    spec = from_processor(saved(kind, **settings), "here")
    ours = jax.jit(spec.normalize)(jnp.asarray(spec.to_uint8(PHOTOS[0]))[None])[0]
    np.testing.assert_allclose(ours, theirs(kind, PHOTOS[0], **settings), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "ViT", "DeiT", "MobileNetV2"])
def test_what_a_file_leaves_out_or_leaves_null_is_transformers_own_default(kind):
    whole = saved(kind)
    spec = from_processor(whole, "here")
    assert from_processor({"image_processor_type": whole["image_processor_type"]}, "here") == spec
    nulls = dict.fromkeys(("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor"))
    assert from_processor({**whole, **nulls}, "here") == spec


def test_a_crop_percentage_that_is_null_is_transformers_4s_default():
    settings = {"size": {"shortest_edge": 28}, "crop_pct": None}  # transformers 5 cannot read it
    assert from_processor({**saved("ConvNext"), **settings}, "here").resize == 32


@pytest.mark.parametrize("step", ["do_resize", "do_center_crop", "do_normalize"])
def test_a_step_that_is_null_is_not_done(step):
    settings = {"size": {"height": 28, "width": 36}, "crop_size": {"height": 24, "width": 20}, step: None}
    spec, off = (from_processor({**saved("DeiT"), **settings, step: value}, "here") for value in (None, False))
    assert spec == off
    expected = theirs("DeiT", PHOTOS[0], **settings)
    ours = spec.normalize(jnp.asarray(spec.to_uint8(PHOTOS[0]))[None])[0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", ["ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_processor_is_known_by_each_name_it_has_had(kind, suffix):
    key = "feature_extractor_type" if suffix == "FeatureExtractor" else "image_processor_type"
    expected = from_processor({}, "here", kind)
    assert from_processor({key: kind + suffix}, "here") == expected
    assert from_processor({key: kind + suffix}, "here", "ViT") == expected


def test_the_newer_name_of_a_processor_counts_where_both_are_there():
    config = {"image_processor_type": "ViTImageProcessor", "feature_extractor_type": "CLIPFeatureExtractor"}
    assert from_processor(config, "here") == from_processor({}, "here", "ViT")


@pytest.mark.parametrize(
    ("kind", "settings", "resize", "size"),
    [
        ("CLIP", {"size": 30, "crop_size": 28}, 30, (28, 28)),
        ("CLIP", {"size": {"shortest_edge": 30}, "crop_size": {"shortest_edge": 28}}, 30, (28, 28)),
        ("Siglip", {"size": 28}, (28, 28), (28, 28)),
        ("ViT", {"size": 28}, (28, 28), (28, 28)),
        ("DeiT", {"size": 32, "crop_size": 28}, (32, 32), (28, 28)),
        ("Bit", {"size": 32, "crop_size": 28}, 32, (28, 28)),
        ("ConvNext", {"size": 28}, 32, (28, 28)),
        ("ConvNext", {"size": 384}, (384, 384), (384, 384)),
        ("MobileNetV2", {"size": 32, "crop_size": 28}, 32, (28, 28)),
    ],
)
def test_a_number_as_size_means_what_it_meant_to_each_processor(kind, settings, resize, size):
    spec = from_processor({"feature_extractor_type": f"{kind}FeatureExtractor", **settings}, "here")
    assert (spec.resize, (spec.height, spec.width)) == (resize, size)


def test_without_normalization_pixels_are_only_scaled_to_one():
    spec = from_processor({"do_normalize": False}, "here")
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1).repeat(3, -1)
    np.testing.assert_allclose(spec.normalize(jnp.asarray(images))[0, 0, :, 0], [0, 0.2, 1], atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_processor_type": "FlavaImageProcessor"},
            "image processor 'FlavaImageProcessor' is not supported.*CLIP",
        ),
        ({"rescale_factor": 1 / 127.5}, "only a rescale by 1/255 is supported; received 0.0078"),
        ({"do_rescale": False}, "only a rescale by 1/255 is supported"),
        (
            {"do_center_crop": False},
            "without a centre crop, size needs height and width; received {'shortest_edge': 32}",
        ),
        ({"size": {"longest_edge": 32}}, "has no 'height'"),
        ({"size": {"height": 32}}, "has no 'width'"),
        ({"size": "224"}, "not the configuration of an image processor"),
        ({"size": [32, 32]}, "not the configuration of an image processor"),
        ({"crop_size": {"height": "wide", "width": 3}}, "not the configuration of an image processor: .*'wide'"),
        ({"image_mean": [0.5]}, "not the configuration of an image processor"),
        ({"image_std": 0.5}, "not the configuration of an image processor"),
        ({"resample": 9}, "not the configuration of an image processor: 9 is not a valid"),
        ({"rescale_factor": "1/255"}, "not the configuration of an image processor"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0},
            "not the configuration of an image processor",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 3, "width": 3}},
            "size needs shortest_edge; received {'height': 3",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_processor_that_cannot_be_followed_is_one_clear_error(changes, message):
    with pytest.raises(ModelError, match=f"^here.json: {message}"):
        from_processor({**SMALL, **changes}, "here.json")


@pytest.fixture
def checkpoint(tmp_path):
    """A folder of transformers' layout, with the files that are given."""

    def make(**files):
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return Checkpoint(tmp_path, tmp_path / "config.json", "transformers", "any", {})

    return make


@pytest.mark.parametrize(
    ("processor", "native", "expected"),
    [
        ("CLIP", 336, ImageSpec(336, 336, 336, "bicubic", **OPENAI)),
        ("Siglip", 384, ImageSpec(384, 384, (384, 384), "bicubic", **HALF)),
        ("ViT", 32, ImageSpec(32, 32, (32, 32), "bilinear", **HALF)),
        ("DeiT", 224, ImageSpec(224, 224, (256, 256), "bicubic", **HALF)),
        ("DeiT", 384, ImageSpec(384, 384, (438, 438), "bicubic", **HALF)),
        ("Bit", 518, ImageSpec(518, 518, 592, "bicubic", **IMAGENET)),
        ("MobileNetV2", None, ImageSpec(224, 224, 256, "bilinear", **HALF)),
        ("MobileNetV2", 96, ImageSpec(96, 96, 109, "bilinear", **HALF)),
    ],
)
def test_without_a_file_the_familys_default_scales_to_the_models_size(checkpoint, processor, native, expected):
    assert read_image_spec(checkpoint(), processor=processor, native=native) == expected


def test_without_a_file_a_wanted_size_comes_before_the_models(checkpoint):
    spec = read_image_spec(checkpoint(), processor="DeiT", native=224, size=448)
    assert spec == ImageSpec(448, 448, (512, 512), "bicubic", **HALF)


def test_a_file_is_followed_whatever_the_models_size_and_scales_to_the_wanted_one(checkpoint):
    folder = checkpoint(preprocessor_config=saved("CLIP", **SMALL))
    spec = read_image_spec(folder, processor="ViT", native=224)
    assert spec == ImageSpec(28, 28, 32, "bicubic", **OPENAI)
    assert read_image_spec(folder, processor="ViT", native=224, size=56) == spec.at(56)
    assert spec.at(56).resize == 64


def test_a_file_that_names_no_processor_means_the_familys(checkpoint):
    spec = read_image_spec(checkpoint(preprocessor_config={"size": 64}), processor="ViT", native=64)
    assert spec == ImageSpec(64, 64, (64, 64), "bilinear", **HALF)


def test_the_processor_inside_a_whole_processors_file_is_found_where_it_has_none_of_its_own(checkpoint):
    inside = {"image_processor": saved("ViT", size={"height": 28, "width": 28}), "processor_class": "CLIPProcessor"}
    assert read_image_spec(checkpoint(processor_config=inside), processor="CLIP").resize == (28, 28)
    both = checkpoint(processor_config=inside, preprocessor_config=saved("CLIP", **SMALL))
    assert read_image_spec(both, processor="CLIP").resize == 32


def test_a_whole_processors_file_without_an_image_processor_is_as_none(checkpoint):
    spec = read_image_spec(checkpoint(processor_config={"processor_class": "X"}), processor="CLIP", native=32)
    assert spec == ImageSpec(32, 32, 32, "bicubic", **OPENAI)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"preprocessor_config": ["CLIP"]}, "preprocessor_config.json: needs a JSON object"),
        ({"preprocessor_config": {"image_mean": [1]}}, "preprocessor_config.json: not the configuration of an image"),
        ({"processor_config": {"image_processor": {"image_std": 1}}}, "/processor_config.json: not the configuration"),
        ({"processor_config": {"image_processor": "CLIP"}}, "its image preprocessing cannot be read"),
    ],
)
def test_the_file_with_a_bad_value_is_named(checkpoint, files, message):
    with pytest.raises(ModelError, match=message):
        read_image_spec(checkpoint(**files), processor="CLIP")


def timm(tmp_path, config, **sizes):
    made = Checkpoint(tmp_path, tmp_path / "config.json", "timm", "any", {"pretrained_cfg": config})
    return read_image_spec(made, **sizes)


def open_clip(tmp_path, config, **sizes):
    made = Checkpoint(
        tmp_path, tmp_path / "open_clip_config.json", "open_clip", "open_clip", {"preprocess_cfg": config}
    )
    return read_image_spec(made, **sizes)


@pytest.mark.parametrize(
    ("size", "crop_pct", "edge"),
    [(224, 0.875, 256), (224, 0.9, 248), (224, 0.96, 233), (288, 0.95, 303), (384, 1.0, 384), (64, None, 73)],
)
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_timms_resize_is_the_size_over_the_crop_percentage_rounded_down(tmp_path, size, crop_pct, edge, mode):
    config = {"input_size": [3, size, size], "crop_pct": crop_pct, "crop_mode": mode, "interpolation": "bilinear"}
    config |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    resize = edge if mode == "center" else (edge, edge)
    expected = ImageSpec(size, size, resize, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "even")
    assert timm(tmp_path, config) == expected


def test_timms_defaults_are_imagenets_statistics_and_an_eighth_cropped(tmp_path):
    assert timm(tmp_path, {}) == ImageSpec(224, 224, 256, "bicubic", **IMAGENET, rounding="even")


def test_the_wanted_size_comes_before_the_models_and_that_before_timms_file(tmp_path):
    config = {"input_size": [3, 224, 224], "crop_pct": 0.9}
    found = [timm(tmp_path, config, **sizes) for sizes in ({}, {"native": 64}, {"native": 64, "size": 96})]
    assert [(spec.height, spec.width, spec.resize) for spec in found] == [(224, 224, 248), (64, 64, 71), (96, 96, 106)]


@pytest.mark.parametrize(("mode", "resize"), [("shortest", 48), ("squash", (48, 48)), (None, 48)])
def test_open_clip_resizes_to_the_models_own_size(tmp_path, mode, resize):
    config = {"resize_mode": mode, "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    expected = ImageSpec(48, 48, resize, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "even")
    assert open_clip(tmp_path, config, native=48) == expected
    assert open_clip(tmp_path, config, native=32, size=48) == expected


def test_open_clips_defaults_are_openais(tmp_path):
    assert open_clip(tmp_path, {}) == ImageSpec(224, 224, 224, "bicubic", **OPENAI, rounding="even")


@pytest.mark.parametrize(
    ("read", "config", "message"),
    [
        (
            timm,
            {"crop_mode": "border"},
            "pretrained_cfg: crop_mode 'border' is not supported; supported: center, squash",
        ),
        (timm, {"interpolation": "random"}, "pretrained_cfg: interpolation 'random' is not supported.*bicubic"),
        (timm, {"mean": [0.5]}, "its image preprocessing cannot be read"),
        (timm, {"std": 0.5}, "its image preprocessing cannot be read"),
        (timm, {"crop_pct": "most"}, "its image preprocessing cannot be read"),
        (timm, [], "its image preprocessing cannot be read"),
        (open_clip, {"resize_mode": "longest"}, "preprocess_cfg: resize_mode 'longest' is not supported.*squash"),
        (open_clip, {"interpolation": "random"}, "preprocess_cfg: interpolation 'random' is not supported"),
        (open_clip, {"mean": ["a", "b", "c"]}, "its image preprocessing cannot be read: .*'a'"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_cannot_be_followed_in_timms_and_open_clips_settings_is_named(tmp_path, read, config, message):
    with pytest.raises(ModelError, match=message):
        read(tmp_path, config)
