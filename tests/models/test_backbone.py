import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

import finetune
from finetune.errors import ModelError, TransferError
from finetune.models.backbone import load_backbone, load_clip
from finetune.models.build import build_module, describe


def rewrite(file, **changes):
    """Sets keys of a JSON file; None deletes."""
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def test_tiny_clip_comes_with_its_image_spec_and_text_tower(tiny_clip, images):
    output = jax.eval_shape(tiny_clip.module.apply, tiny_clip.variables, images)
    assert tiny_clip.num_features == output.pooler_output.shape[1] == 192
    assert (tiny_clip.image_spec.height, tiny_clip.image_spec.width) == (32, 32)
    assert tiny_clip.text.tokenizer("a photo")["input_ids"]
    assert (tiny_clip.family, tiny_clip.layout) == ("clip", "transformers")


def test_every_tensor_of_a_checkpoint_is_accounted_for(tiny_clip):
    leaves = len(jax.tree.leaves(tiny_clip.text.variables))
    assert len(tiny_clip.report.transferred) == leaves
    assert tiny_clip.report.fresh == ()
    assert ("logit_scale", "params/logit_scale") in tiny_clip.report.transferred


def test_the_module_is_rebuilt_from_family_and_configuration(tiny_clip, images):
    module = build_module(**json.loads(json.dumps(describe(tiny_clip))))
    assert module == tiny_clip.module
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(jnp.shape, tiny_clip.variables)


def test_the_error_about_an_unknown_family_lists_the_known_ones():
    with pytest.raises(ModelError, match="unknown model family 'vgg'; supported: clip, open_clip, clip_resnet, "):
        build_module("vgg", {})


def test_a_vision_tower_alone_has_no_text(goldens):
    assert load_backbone(goldens / "clip-vision-only").text is None


def test_without_a_preprocessor_file_clips_own_statistics_are_used(goldens):
    spec = load_backbone(goldens / "clip-vision-only").image_spec
    assert (spec.height, spec.width, spec.resize, spec.interpolation) == (32, 32, 32, "bicubic")
    assert spec.mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_a_vision_tower_is_read_with_and_without_its_prefix(copy_golden, prefix):
    folder = copy_golden("clip-vision-only")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {prefix + name.removeprefix("vision_model."): t for name, t in tensors.items()}, folder / "model.safetensors"
    )
    kernel = load_backbone(folder).variables["params"]["encoder"]["layers"]["0"]["mlp"]["fc1"]["kernel"]
    original = next(t for name, t in tensors.items() if name.endswith("layers.0.mlp.fc1.weight"))
    np.testing.assert_array_equal(kernel, original.T)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere: no such folder, and neither a hub id"):
        load_backbone(tmp_path / "nowhere")


def test_a_folder_without_a_configuration_is_no_checkpoint(tmp_path):
    with pytest.raises(
        ModelError, match=rf"{tmp_path.name}: not a checkpoint: it has neither config.json .*; give a folder"
    ):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type":', r"config.json: cannot be read as JSON"),
        ("[1, 2]", r"config.json: needs a JSON object; received list"),
        ('{"hidden_size": 4}', r"config.json: has neither model_type \(transformers\) nor architecture \(timm\)"),
        (
            '{"model_type": "clipp"}',
            r"config.json: model_type 'clipp' is not supported .*did you mean 'clip'.*supported: clip, clip_vision_",
        ),
        (
            '{"architecture": "vgg11"}',
            r"config.json: architecture 'vgg11' is not supported; supported: vit_\*_clip_\*, .*convnext_\*",
        ),
        ('{"model_type": 5}', r"config.json: has neither model_type"),
        (
            '{"model_type": "clip_vision_model", "hidden_size": "wide"}',
            r"config.json: (not a CLIPVisionConfig: .*hidden_size|no model can be built from it)",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load_backbone(tmp_path)


def test_load_clip_needs_both_towers(goldens):
    with pytest.raises(
        ModelError, match=r"not a CLIP with both towers: config\.json says 'clip_vision_model', a vision model"
    ):
        load_clip(goldens / "clip-vision-only")


def test_a_configuration_of_other_sizes_than_the_weights_names_the_tensors(copy_golden):
    folder = copy_golden("clip-vision-only")
    rewrite(folder / "config.json", intermediate_size=96)
    with pytest.raises(TransferError) as raised:
        load_backbone(folder)
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == 9  # two kernels and one bias in each of three layers
    assert any("layers.0.mlp.fc1.bias: (128,) given, (96,) needed" in line for line in lines)


def test_missing_unexpected_and_misshapen_tensors_are_reported_together(copy_golden):
    folder = copy_golden("clip-vision-only")
    tensors = load_file(folder / "model.safetensors")
    bias = next(name for name in tensors if name.endswith("layers.2.mlp.fc2.bias"))
    scale = next(name for name in tensors if name.endswith("post_layernorm.weight"))
    tensors[bias] = np.zeros(63, np.float32)
    del tensors[scale]
    save_file({**tensors, "extra.thing": np.zeros(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(TransferError) as raised:
        load_backbone(folder)
    assert str(raised.value).splitlines()[1:] == [
        f"  shape       {bias}: (63,) given, (64,) needed",
        "  missing     params/post_layernorm/scale (64,)",
        "  unexpected  extra.thing (2,)",
    ]


def test_weights_of_another_model_are_refused(copy_golden):
    folder = copy_golden("clip-vision-only")
    save_file({"fc.weight_v": np.zeros(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"none of its 1 tensors belong to the model that its config\.json names"):
        load_backbone(folder)


@pytest.mark.parametrize("kept", [0, 5, 100_000])
def test_a_truncated_file_is_named_with_its_size(copy_golden, kept):
    folder = copy_golden("clip-vision-only")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(
        ModelError, match=rf"model.safetensors: not a complete safetensors file \({kept:,} bytes\).*download it"
    ):
        load_backbone(folder)


def test_missing_and_truncated_shards_are_named(copy_golden):
    folder = copy_golden("clip-gelu-sharded")
    third, fifth = (folder / f"model-0000{n}-of-00007.safetensors" for n in (3, 5))
    fifth.write_bytes(fifth.read_bytes()[:-10])
    with pytest.raises(ModelError, match=rf"{fifth.name}: not a complete safetensors file"):
        load_backbone(folder)
    third.unlink()
    with pytest.raises(ModelError, match=rf"1 of 7 shards are missing: {third.name}; download"):
        load_backbone(folder)


def test_pickled_weights_are_refused_and_the_error_says_how_to_convert_them(copy_golden):
    folder = copy_golden("clip-vision-only")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has pytorch_model.bin but no safetensors.*safe_serialization=True"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"longest_edge": 32}}, "has no 'height'"),
        ({"image_std": [0.5, 0.5]}, "not the configuration of an image processor"),
        ({"resample": 9}, "not the configuration of an image processor: 9"),
        ({"do_rescale": False}, "only a rescale by 1/255 is supported"),
        (
            {"crop_size": {"height": 24, "width": 24}},
            "its image processor makes images of 24x24, but config.json says 32x32",
        ),
    ],
)
def test_an_image_processor_that_does_not_fit_is_named(copy_golden, changes, message):
    folder = copy_golden("clip-quick-gelu")
    rewrite(folder / "preprocessor_config.json", **changes)
    with pytest.raises(ModelError, match=message):
        load_backbone(folder)


def test_a_checkpoint_without_a_tokenizer_says_so_when_texts_are_embedded(goldens):
    clip = load_clip(goldens / "clip-quick-gelu")
    with pytest.raises(ModelError, match=r"clip-quick-gelu: has no tokenizer; it needs one of tokenizer\.json"):
        clip.embed_texts(["a photo"])


def test_a_submodule_of_a_vision_model_alone_is_refused():
    with pytest.raises(
        ModelError, match=r"vit is a vision model without a text tower, so there is no 'vision_model' to choose"
    ):
        load_backbone(GOLDENS / "vit", submodule="vision_model")


def test_an_image_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ModelError, match="image_size: 7 is no multiple of the model's patches of 8 pixels; such as 8"):
        load_backbone(GOLDENS / "vit", image_size=7)


def test_at_another_image_size_only_the_positions_and_the_resize_rule_change(tiny_clip):
    larger = load_backbone("builtin:tiny-clip", image_size=48)
    assert larger.report.resized == ("params/vision_model/embeddings/position_embedding/embedding",)
    assert larger.config == replace(tiny_clip.config, image_size=48)
    assert larger.image_spec == tiny_clip.image_spec.at(48)
    ours, theirs = flatten_dict(larger.variables, sep="/"), flatten_dict(tiny_clip.variables, sep="/")
    changed = {path for path in ours if not np.array_equal(ours[path], theirs[path])}
    assert changed == {"params/embeddings/position_embedding/embedding"}


def test_the_public_names_are_the_same_objects():
    assert finetune.load_backbone is load_backbone
    assert finetune.load_clip is load_clip


def test_a_submodule_is_a_path_in_the_two_tower_module_and_has_to_take_images(tiny_clip):
    named = load_backbone("builtin:tiny-clip", submodule="vision_model")
    assert type(named.module) is type(tiny_clip.module)
    with pytest.raises(
        ModelError,
        match=r"'text_model' is a CLIPTextTransformer, which does not take images; choose a VisionTransformer",
    ):
        load_backbone("builtin:tiny-clip", submodule="text_model")


@pytest.mark.parametrize("name", ["clip-vision-interpolated", "siglip", "vit", "dinov2-swiglu"])
def test_dropout_and_stochastic_depth_replace_those_of_the_checkpoint(name):
    plain = load_backbone(GOLDENS / name)
    changed = load_backbone(GOLDENS / name, dropout=0.1, drop_path=0.2, dtype=jnp.bfloat16)
    assert changed.config == replace(plain.config, dropout=0.1, drop_path_rate=0.2)
    assert changed.module == plain.module.clone(config=changed.config, dtype=jnp.bfloat16)
    assert build_module(**json.loads(json.dumps(describe(changed)))) == changed.module.clone(dtype=jnp.float32)


@pytest.mark.parametrize("name", ["timm-resnet50d", "timm-convnext", "mobilenet-v2"])
def test_convolutional_backbones_have_stochastic_depth_and_no_dropout_inside(name):
    assert load_backbone(GOLDENS / name, drop_path=0.2).module.config.drop_path_rate == 0.2
    with pytest.raises(
        ModelError, match=r"dropout: \w+ has no dropout layers; dropout in front of the head is set on the head"
    ):
        load_backbone(GOLDENS / name, dropout=0.1)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_a_rate_outside_0_to_1_is_refused_and_the_option_named(option, rate):
    with pytest.raises(ModelError, match=rf"^{option}: needs a rate of at least 0 and below 1; received {rate}"):
        load_backbone(GOLDENS / "vit", **{option: rate})
