"""Make the reference checkpoints ("goldens") of this folder: tiny random models and what PyTorch computes with them.

    python -m tests.goldens.make            # all of them
    python -m tests.goldens.make siglip vit # only these

Each golden is a folder: the configuration and the weights exactly as the library (transformers, timm or open_clip)
saves them, and ``expected.npz`` with inputs and PyTorch's outputs. Images are float32 [batch, height, width, channels];
outputs keep PyTorch's layout. A key that ends in ``_48`` belongs to an image of 48 pixels, read by the same weights.

Every parameter and buffer is drawn anew, because most start as zeros or ones, with which a wrong transfer of weights
would not show. Seeds are fixed and PyTorch uses one thread: made again on one machine, the files are identical.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import timm
import torch
import transformers
from numpy.random import Generator
from open_clip.model import resize_pos_embed, set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.loss import BinaryCrossEntropy
from timm.models import _efficientnet_blocks, eva, save_for_hf
from timm.models._efficientnet_builder import round_channels
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide, _apply_op

from tests.support.seeded import seeded

HERE = Path(__file__).parent
Arrays = dict[str, Any]

# The last part of the names of tensors that are looked up or appended to the sequence.
# fmt: off
TABLES = {
    "cls_token", "dist_token", "reg_token", "mask_token", "distillation_token", "register_tokens", "class_embedding",
    "pos_embed", "position_embeddings", "position_embedding", "positional_embedding", "token_embedding",
    "probe", "latent",
}
# fmt: on
ENCODER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_ENCODER = {**ENCODER, "image_size": 32, "patch_size": 8}
TIMM_VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
TIMM_SWIN = {"embed_dim": 4, "depths": (2, 2, 1), "num_heads": (1, 2, 2)}
EFFICIENTNET = {
    "width_coefficient": 0.02,
    "depth_coefficient": 1.0,
    "depth_divisor": 4,
    "hidden_dim": 24,
    "in_channels": [32, 16, 24],
    "out_channels": [16, 24, 200],
    "kernel_sizes": [3, 5, 3],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 2, 1],
    "expand_ratios": [1, 6, 2],
    "depthwise_padding": [1],
}


# Weights and inputs


def draw(rng: Generator, name: str, tensor: Tensor) -> np.ndarray:
    """New values for one tensor of a state dict."""
    shape = tuple(tensor.shape)
    leaf = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if name.endswith("num_batches_tracked"):
        return rng.integers(1, 100, shape)
    if leaf in TABLES or leaf == "running_mean":
        return rng.uniform(-0.5, 0.5, shape)
    if name.endswith("bias"):
        return rng.uniform(-0.3, 0.3, shape)
    if len(shape) < 2:  # scales of norms and of layers, running_var, logit_scale
        return rng.uniform(0.5, 1.5, shape)
    fan_in = np.prod(shape[1:])
    return rng.uniform(-1, 1, shape) * np.sqrt(6 / fan_in)  # keeps the variance through a ReLU


def randomize(model: nn.Module, rng: Generator) -> Any:
    """The model in eval mode with every tensor of its state drawn anew."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.as_tensor(draw(rng, name, tensor)))
    return model.eval()


def images(rng: Generator, size: int, batch: int = 2) -> np.ndarray:
    """NHWC images of few levels, so that they compress well."""
    return rng.integers(-4, 4, (batch, size, size, 3)).astype(np.float32) / 2


def nchw(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


# transformers


def hidden_states(model: nn.Module, rng: Generator, size: int, suffix: str = "", **options: Any) -> Arrays:
    """The two outputs of a vision encoder for random images."""
    pixels = images(rng, size, batch=1 if suffix else 2)
    output = model(nchw(pixels), **options)
    return {
        f"pixel_values{suffix}": pixels,
        f"last_hidden_state{suffix}": output.last_hidden_state,
        f"pooler_output{suffix}": output.pooler_output,
    }


def resized_hidden_states(model: nn.Module, rng: Generator, size: int) -> Arrays:
    """The same for images of another size, where the library interpolates positions only when told to."""
    return hidden_states(model, rng, size, f"_{size}", interpolate_pos_encoding=True)


def siglip(folder: Path, rng: Generator) -> Arrays:
    config = transformers.SiglipConfig(
        vision_config=SMALL_ENCODER | {"intermediate_size": 40, "vision_use_head": True},
        text_config=ENCODER | {"vocab_size": 64, "max_position_embeddings": 8, "bos_token_id": 62, "eos_token_id": 63},
    )
    model = randomize(transformers.SiglipModel(config), rng)
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)

    pixels = images(rng, 32)
    ids = rng.integers(2, 62, (3, 8))
    for row, length in zip(ids, (8, 5, 3), strict=True):
        row[length - 1] = config.text_config.eos_token_id
        row[length:] = config.text_config.pad_token_id
    output = model(input_ids=torch.from_numpy(ids), pixel_values=nchw(pixels))
    return {
        "pixel_values": pixels,
        "last_hidden_state": output.vision_model_output.last_hidden_state,
        "pooler_output": output.vision_model_output.pooler_output,
        "input_ids": ids,
        "image_embeds": output.image_embeds,
        "text_embeds": output.text_embeds,
        "text_pooler_output": output.text_model_output.pooler_output,
        "logits_per_image": output.logits_per_image,
        **resized_hidden_states(model.vision_model, rng, 48),
    }


def dinov2_swiglu(folder: Path, rng: Generator) -> Arrays:
    config = transformers.Dinov2Config(**ENCODER, mlp_ratio=2, image_size=56, patch_size=14, use_swiglu_ffn=True)
    model = randomize(transformers.Dinov2Model(config), rng)
    model.save_pretrained(folder)
    return hidden_states(model, rng, 56) | hidden_states(model, rng, 84, "_84")


def dinov2_registers(folder: Path, rng: Generator) -> Arrays:
    config = transformers.Dinov2WithRegistersConfig(**ENCODER, mlp_ratio=2, image_size=56, patch_size=14)
    model = randomize(transformers.Dinov2WithRegistersModel(config), rng)
    model.save_pretrained(folder)
    return hidden_states(model, rng, 56) | hidden_states(model, rng, 84, "_84")


def vit(folder: Path, rng: Generator) -> Arrays:
    model = randomize(transformers.ViTModel(transformers.ViTConfig(**SMALL_ENCODER)), rng)
    model.save_pretrained(folder)
    return hidden_states(model, rng, 32) | resized_hidden_states(model, rng, 48)


def vit_classifier(folder: Path, rng: Generator) -> Arrays:
    config = transformers.ViTConfig(**SMALL_ENCODER, num_labels=5)
    model = randomize(transformers.ViTForImageClassification(config), rng)
    model.save_pretrained(folder)
    pixels = images(rng, 32)
    states = model.vit(nchw(pixels)).last_hidden_state
    return {
        "pixel_values": pixels,
        "last_hidden_state": states,
        "pooler_output": states[:, 0],  # what the classifier reads; this model has no pooler
        "logits": model(nchw(pixels)).logits,
    }


def deit(folder: Path, rng: Generator) -> Arrays:
    model = randomize(transformers.DeiTModel(transformers.DeiTConfig(**SMALL_ENCODER)), rng)
    model.save_pretrained(folder)
    return hidden_states(model, rng, 32) | resized_hidden_states(model, rng, 48)


def clip_vision_interpolated(folder: Path, rng: Generator) -> Arrays:
    model = randomize(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL_ENCODER)), rng)
    model.save_pretrained(folder)
    return hidden_states(model, rng, 32) | resized_hidden_states(model, rng, 48)


def metaclip2(folder: Path, rng: Generator) -> Arrays:
    """The end-of-text token is 2, which to CLIP's configurations would mean the highest id in the row."""
    text = ENCODER | {"vocab_size": 64, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 2}
    config = transformers.MetaClip2Config(vision_config=SMALL_ENCODER, text_config=text, projection_dim=24)
    model = randomize(transformers.MetaClip2Model(config), rng)
    model.save_pretrained(folder)
    pixels, ids = images(rng, 32), token_rows(rng, end=2, padding=1)
    output = model(input_ids=torch.from_numpy(ids), pixel_values=nchw(pixels))
    vision = model.vision_model(nchw(pixels))  # the one in the output has its pooled vector projected
    return {
        "pixel_values": pixels,
        "last_hidden_state": vision.last_hidden_state,
        "pooler_output": vision.pooler_output,
        "input_ids": ids,
        "image_embeds": output.image_embeds,
        "text_embeds": output.text_embeds,
        "logits_per_image": output.logits_per_image,
    }


def metaclip2_vision(folder: Path, rng: Generator) -> Arrays:
    model = randomize(transformers.MetaClip2VisionModel(transformers.MetaClip2VisionConfig(**SMALL_ENCODER)), rng)
    model.save_pretrained(folder)
    return hidden_states(model, rng, 32) | resized_hidden_states(model, rng, 48)


def classifier_of_two_towers(kind: str) -> Callable[[Path, Generator], Arrays]:
    """A classifier whose configuration is that of a model with both towers, and which has the vision tower alone."""

    def make_it(folder: Path, rng: Generator) -> Arrays:
        config = getattr(transformers, f"{kind}Config")(vision_config=SMALL_ENCODER, text_config=ENCODER, num_labels=5)
        model = randomize(getattr(transformers, f"{kind}ForImageClassification")(config), rng)
        model.save_pretrained(folder)
        return hidden_states(model.vision_model, rng, 32)

    return make_it


def token_rows(rng: Generator, end: int, padding: int) -> np.ndarray:
    """Three texts of up to 8 tokens from 3 to 61, each with its end."""
    ids = rng.integers(3, 62, (3, 8))
    for row, length in zip(ids, (8, 5, 3), strict=True):
        row[length - 1], row[length:] = end, padding
    return ids


def mobilenet_v2(folder: Path, rng: Generator) -> Arrays:
    config = transformers.MobileNetV2Config(
        depth_multiplier=0.05, depth_divisible_by=4, min_depth=4, finegrained_output=False, image_size=64
    )
    model = randomize(transformers.MobileNetV2Model(config), rng)
    model.save_pretrained(folder)
    # TensorFlow's padding differs between even and odd sizes.
    return hidden_states(model, rng, 64) | hidden_states(model, rng, 65, "_65")


def batchnorm_step(folder: Path, rng: Generator) -> Arrays:
    """One pass in training mode: its outputs, the running statistics after it, and the gradients."""
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    model = randomize(transformers.ResNetModel(config), rng)
    model.save_pretrained(folder)

    pixels = images(rng, 32, batch=4)
    model.train()
    with torch.enable_grad():
        pooled = model(nchw(pixels)).pooler_output
        loss = (pooled**2).mean()
        loss.backward()
    statistics = {name: value for name, value in model.named_buffers() if "running" in name}
    return {
        "pixel_values": pixels,
        "pooler_output": pooled,
        "loss": loss,
        **{f"after/{name}": value for name, value in statistics.items()},
        **{f"grad/{name}": parameter.grad for name, parameter in model.named_parameters()},
    }


def gradients(model: nn.Module, rng: Generator, size: int, key: str, pool: Callable[[Tensor], Tensor]) -> Arrays:
    """Pooled features of random images, and the gradients of the mean of their squares, in evaluation mode."""
    pixels = images(rng, size)
    with torch.enable_grad():
        pooled = pool(nchw(pixels))
        loss = (pooled**2).mean()
        loss.backward()
    parameters = {name: parameter.grad for name, parameter in model.named_parameters()}
    grads = {f"grad/{name}": grad for name, grad in parameters.items() if grad is not None}
    return {"pixel_values": pixels, key: pooled, "loss": loss, **grads}


def dinov3_step(folder: Path, rng: Generator) -> Arrays:
    config = transformers.DINOv3ViTConfig(**SMALL_ENCODER, num_register_tokens=2)
    model = randomize(transformers.DINOv3ViTModel(config), rng)
    model.save_pretrained(folder)
    step = gradients(model, rng, 32, "pooler_output", lambda pixels: model(pixels).pooler_output)
    return step | hidden_states(model, rng, 48, "_48")


def dinov3_convnext(folder: Path, rng: Generator) -> Arrays:
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[4, 8, 8, 16], depths=[1, 1, 2, 1])
    model = randomize(transformers.DINOv3ConvNextModel(config), rng)
    model.save_pretrained(folder)
    return hidden_states(model, rng, 64)


def tipsv2(folder: Path, rng: Generator) -> Arrays:
    sizes = SMALL_ENCODER | {"mlp_ratio": 2}
    del sizes["intermediate_size"]
    words = ["<pad>", "<unk>", "\u2581", "a", "b", "c", "d", "\u2581a"]
    tokenizer = transformers.Tipsv2Tokenizer({word: i for i, word in enumerate(words)}, [("\u2581", "a")])
    tokenizer.save_pretrained(folder)
    text = ENCODER | {"vocab_size": 16, "max_position_embeddings": 8, "num_hidden_layers": 1}
    model = randomize(transformers.Tipsv2Model(transformers.Tipsv2Config(vision_config=sizes, text_config=text)), rng)
    model.temperature.fill_(0.01)
    model.save_pretrained(folder)
    vision = model.vision_model
    smaller, larger = hidden_states(vision, rng, 24, "_24"), hidden_states(vision, rng, 48, "_48")
    texts = ["a Bd", "c", "dad ab cab bad"]  # the last is cut
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    pixels = images(rng, 32)
    output = model(**tokens, pixel_values=nchw(pixels))
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "text_pooler_output": output.text_model_output.pooler_output,
        "text_embeds": output.text_embeds,
        "image_embeds": output.image_embeds,
        "logits_per_image": output.logits_per_image,
        "pixel_values": pixels,
        "last_hidden_state": output.vision_model_output.last_hidden_state,
        "pooler_output": output.vision_model_output.pooler_output,
        **smaller,
        **larger,
    }


def aimv2_step(folder: Path, rng: Generator) -> Arrays:
    model = randomize(transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**SMALL_ENCODER)), rng)
    model.save_pretrained(folder)
    return gradients(model, rng, 32, "pooler_output", lambda pixels: model(pixels).pooler_output)


def under_saved_names(model: nn.Module, step: Arrays) -> Arrays:
    """The arrays of ``gradients``, under the names that ``save_pretrained`` gives the parameters where they differ."""
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        parameter.copy_(step[f"grad/{name}"])
    with TemporaryDirectory() as folder:
        other.save_pretrained(folder)
        saved = load_file(Path(folder) / "model.safetensors")
    kept = {key: value for key, value in step.items() if not key.startswith("grad/")}
    return kept | {f"grad/{name}": gradient for name, gradient in saved.items()}


def swin_step(folder: Path, rng: Generator) -> Arrays:
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
    model = randomize(transformers.SwinModel(transformers.SwinConfig(**sizes, window_size=4)), rng)
    model.save_pretrained(folder)
    step = gradients(model, rng, 32, "pooler_output", lambda pixels: model(pixels).pooler_output)
    # 13 and 7 patches along an edge: all of its maps are padded
    return under_saved_names(model, step) | hidden_states(model, rng, 26, "_26")


def swinv2_step(folder: Path, rng: Generator) -> Arrays:
    sizes = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2]}
    config = transformers.Swinv2Config(**sizes, window_size=6, pretrained_window_sizes=[5, 0])
    model = randomize(transformers.Swinv2Model(config), rng)
    model.save_pretrained(folder)
    step = gradients(model, rng, 16, "pooler_output", lambda pixels: model(pixels).pooler_output)
    return step | hidden_states(model, rng, 26, "_26")


def beit_step(folder: Path, rng: Generator) -> Arrays:
    config = transformers.BeitConfig(**SMALL_ENCODER, use_relative_position_bias=True, use_mean_pooling=True)
    model = randomize(transformers.BeitModel(config), rng)
    model.save_pretrained(folder)
    step = gradients(model, rng, 32, "pooler_output", lambda pixels: model(pixels).pooler_output)
    return under_saved_names(model, step) | hidden_states(model, rng, 48, "_48") | hidden_states(model, rng, 24, "_24")


def masked_beit(folder: Path, rng: Generator) -> Arrays:
    """As BEiT is pretrained: one bias for all layers, learned positions too, and the last norm in the head."""
    config = transformers.BeitConfig(
        **SMALL_ENCODER,
        vocab_size=8,
        use_mask_token=True,
        use_absolute_position_embeddings=True,
        use_shared_relative_position_bias=True,
        use_mean_pooling=True,
    )
    model = randomize(transformers.BeitForMaskedImageModeling(config), rng)
    model.save_pretrained(folder)

    def outputs(size: int, suffix: str = "") -> Arrays:
        pixels = images(rng, size, batch=1)
        states = model.layernorm(model.beit(nchw(pixels)).last_hidden_state)
        return {f"pixel_values{suffix}": pixels, f"last_hidden_state{suffix}": states}

    return outputs(32) | outputs(48, "_48")


def vit_mae(folder: Path, rng: Generator) -> Arrays:
    model = randomize(transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL_ENCODER, mask_ratio=0.0)), rng)
    model.save_pretrained(folder)

    def outputs(size: int, suffix: str = "") -> Arrays:
        pixels = images(rng, size, batch=1)
        order = torch.arange((size // 8) ** 2)[None].float()  # the noise whose ranks shuffle the patches
        states = model(nchw(pixels), noise=order, interpolate_pos_encoding=True).last_hidden_state
        pooled = states[:, 0]
        return {
            f"pixel_values{suffix}": pixels,
            f"last_hidden_state{suffix}": states,
            f"pooler_output{suffix}": pooled,
        }

    return outputs(32) | outputs(48, "_48")


def ijepa(folder: Path, rng: Generator) -> Arrays:
    model = randomize(transformers.IJepaModel(transformers.IJepaConfig(**SMALL_ENCODER)), rng)
    model.save_pretrained(folder)

    def outputs(size: int, suffix: str = "") -> Arrays:
        pixels = images(rng, size, batch=1)
        states = model(nchw(pixels), interpolate_pos_encoding=True).last_hidden_state
        return {f"pixel_values{suffix}": pixels, f"last_hidden_state{suffix}": states}

    return outputs(32) | outputs(48, "_48")


def ijepa_classifier(folder: Path, rng: Generator) -> Arrays:
    config = transformers.IJepaConfig(**SMALL_ENCODER, num_labels=5)
    model = randomize(transformers.IJepaForImageClassification(config), rng)
    model.save_pretrained(folder)
    pixels = images(rng, 32)
    pooled = model.ijepa(nchw(pixels)).last_hidden_state.mean(1)  # what the classifier reads
    return {"pixel_values": pixels, "pooler_output": pooled, "logits": model(nchw(pixels)).logits}


def efficientnet_step(folder: Path, rng: Generator) -> Arrays:
    model = randomize(transformers.EfficientNetModel(transformers.EfficientNetConfig(**EFFICIENTNET)), rng)
    model.save_pretrained(folder)
    step = gradients(model, rng, 64, "pooler_output", lambda pixels: model(pixels).pooler_output)
    return step | hidden_states(model, rng, 49, "_49")


# timm


def timm_model(architecture: str, folder: Path, rng: Generator, classes: int = 0, **arguments: Any) -> nn.Module:
    """A saved model, without a classifier unless it has classes."""
    model = randomize(timm.create_model(architecture, num_classes=classes, **arguments), rng)
    names = {"label_names": [f"class {i}" for i in range(classes)]} if classes else None
    save_for_hf(model, str(folder), safe_serialization=True, model_config=names)
    return model


def features(model: nn.Module, rng: Generator, size: int, suffix: str = "") -> Arrays:
    pixels = images(rng, size, batch=1 if suffix else 2)
    return {f"pixel_values{suffix}": pixels, f"features{suffix}": model(nchw(pixels))}


def timm_vit_48(folder: Path, rng: Generator) -> Arrays:
    arguments = TIMM_VIT | {"patch_size": 8}
    model = timm_model("vit_tiny_patch16_224", folder, rng, img_size=64, **arguments)
    larger = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96, **arguments).eval()
    larger.load_state_dict(checkpoint_filter_fn(model.state_dict(), larger))  # resamples the positions
    return features(model, rng, 64) | features(larger, rng, 96, "_96")


def timm_vit_registers(folder: Path, rng: Generator) -> Arrays:
    return features(timm_model("vit_small_patch14_reg4_dinov2", folder, rng, img_size=56, **TIMM_VIT), rng, 56)


def timm_vit_siglip(folder: Path, rng: Generator) -> Arrays:
    arguments = TIMM_VIT | {"patch_size": 8, "img_size": 32}
    return features(timm_model("vit_base_patch16_siglip_224", folder, rng, **arguments), rng, 32)


def timm_deit_distilled(folder: Path, rng: Generator) -> Arrays:
    arguments = TIMM_VIT | {"patch_size": 8, "img_size": 32}
    return features(timm_model("deit_tiny_distilled_patch16_224", folder, rng, **arguments), rng, 32)


def at_another_size(
    architecture: str, model: nn.Module, rng: Generator, size: int, adapt: Callable[..., Any], **arguments: Any
) -> Arrays:
    """The features of a model of another image size with the same weights, whose positions ``adapt`` resamples."""
    other = timm.create_model(architecture, num_classes=0, img_size=size, **arguments).eval()
    other.load_state_dict({k: v for k, v in adapt(model.state_dict(), other).items() if not k.startswith("head.")})
    return features(other, rng, size, f"_{size}")


def timm_dinov3_gated(folder: Path, rng: Generator) -> Arrays:
    arguments = TIMM_VIT | {"patch_size": 8, "img_size": 32}
    model = timm_model("vit_small_plus_patch16_dinov3_qkvb", folder, rng, **arguments)
    return features(model, rng, 32) | features(model, rng, 48, "_48")


def timm_eva02_classifier(folder: Path, rng: Generator) -> Arrays:
    name, arguments = "eva02_tiny_patch14_224", TIMM_VIT | {"patch_size": 8}
    model = timm_model(name, folder, rng, classes=5, img_size=32, **arguments)
    pixels = images(rng, 32)
    states = model.forward_features(nchw(pixels))
    return {
        "pixel_values": pixels,
        "features": model.forward_head(states, pre_logits=True),
        "logits": model.forward_head(states),
        **at_another_size(name, model, rng, 48, eva.checkpoint_filter_fn, **arguments),
    }


def timm_eva02_step(folder: Path, rng: Generator) -> Arrays:
    """With a norm in the MLP."""
    arguments = TIMM_VIT | {"patch_size": 8, "img_size": 32}
    model = timm_model("eva02_base_patch14_224", folder, rng, **arguments)
    return gradients(model, rng, 32, "features", model)


def timm_eva02_clip_step(folder: Path, rng: Generator) -> Arrays:
    """With norms in the MLP and in the attention."""
    name, arguments = "eva02_base_patch16_clip_224", TIMM_VIT | {"patch_size": 8}
    model = timm_model(name, folder, rng, img_size=32, **arguments)
    step = gradients(model, rng, 32, "features", model)
    return step | at_another_size(name, model, rng, 48, eva.checkpoint_filter_fn, **arguments)


def timm_pe_core_step(folder: Path, rng: Generator) -> Arrays:
    name, arguments = "vit_pe_core_tiny_patch16_384", TIMM_VIT | {"patch_size": 8}
    model = timm_model(name, folder, rng, img_size=32, **arguments)
    step = gradients(model, rng, 32, "features", model)
    return step | at_another_size(name, model, rng, 48, eva.checkpoint_filter_fn, **arguments)


def timm_tipsv2_48(folder: Path, rng: Generator) -> Arrays:
    name, arguments = "vit_base_patch14_reg1_tipsv2", TIMM_VIT | {"patch_size": 8}
    model = timm_model(name, folder, rng, img_size=32, **arguments)
    return features(model, rng, 32) | at_another_size(name, model, rng, 48, checkpoint_filter_fn, **arguments)


def timm_aimv2_48(folder: Path, rng: Generator) -> Arrays:
    name, arguments = "aimv2_large_patch14_224", TIMM_VIT | {"patch_size": 8}
    model = timm_model(name, folder, rng, img_size=32, **arguments)
    return features(model, rng, 32) | at_another_size(name, model, rng, 48, checkpoint_filter_fn, **arguments)


def timm_resnet50d(folder: Path, rng: Generator) -> Arrays:
    arguments = {"layers": (2, 1, 1, 1), "channels": (4, 4, 8, 8), "stem_width": 8}
    model = timm_model("resnet50d", folder, rng, **arguments)
    return features(model, rng, 64) | features(model, rng, 63, "_63")


def timm_resnext(folder: Path, rng: Generator) -> Arrays:
    arguments = {"layers": (2, 1, 1, 1), "channels": (4, 4, 8, 8), "cardinality": 2, "base_width": 32}
    return features(timm_model("resnext50_32x4d", folder, rng, **arguments), rng, 64)


def timm_convnext(folder: Path, rng: Generator) -> Arrays:
    return features(timm_model("convnext_atto", folder, rng, depths=(2, 1, 1, 1), dims=(4, 8, 8, 16)), rng, 64)


def timm_convnextv2(folder: Path, rng: Generator) -> Arrays:
    return features(timm_model("convnextv2_atto", folder, rng, depths=(2, 1, 1, 1), dims=(4, 8, 8, 16)), rng, 64)


def timm_efficientnetv2(folder: Path, rng: Generator) -> Arrays:
    model = timm_model("tf_efficientnetv2_b0", folder, rng, channel_multiplier=0.02, depth_multiplier=0.3)
    return features(model, rng, 64) | features(model, rng, 49, "_49")  # SAME pads odd sizes in another way


def mobile_blocks(folder: Path, rng: Generator) -> Arrays:
    """Blocks of MobileNetV3 and MobileNetV4, whose networks do not come small: outputs, and gradients of their mean
    square, in evaluation mode."""
    hard = {"gate_layer": "hard_sigmoid", "force_act_layer": nn.ReLU, "rd_round_fn": round_channels, "rd_ratio": 0.25}
    universal = _efficientnet_blocks.UniversalInvertedResidual
    blocks = {
        "ds": _efficientnet_blocks.DepthwiseSeparableConv(
            8, 8, act_layer=nn.ReLU, se_layer=partial(_efficientnet_blocks.SqueezeExcite, **hard)
        ),
        "ir": _efficientnet_blocks.InvertedResidual(
            8,
            8,
            dw_kernel_size=5,
            exp_ratio=3,
            act_layer=nn.Hardswish,
            se_layer=partial(_efficientnet_blocks.SqueezeExcite, **hard),
        ),
        "er": _efficientnet_blocks.EdgeResidual(8, 16, stride=2, force_in_chs=16, exp_ratio=2),
        "uir": universal(8, 8, dw_kernel_size_start=5, exp_ratio=2, layer_scale_init_value=None),
        "uir_start": universal(8, 16, 3, 0, stride=2, exp_ratio=2, layer_scale_init_value=None),
        "uir_dense": universal(8, 8, 0, 0, exp_ratio=2, layer_scale_init_value=None),
    }
    arrays: Arrays = {}
    for name, block in blocks.items():
        randomize(block, rng)
        x = rng.integers(-4, 4, (2, 7, 7, 8)).astype(np.float32) / 2
        with torch.enable_grad():
            y = block(nchw(x))
            (y**2).mean().backward()
        arrays |= {f"{name}/x": x, f"{name}/y": y.permute(0, 2, 3, 1)}
        arrays |= {f"{name}/state/{key}": value for key, value in block.state_dict().items()}
        arrays |= {f"{name}/grad/{key}": parameter.grad for key, parameter in block.named_parameters()}
    return arrays


def timm_efficientnet_shapes(folder: Path, rng: Generator) -> Arrays:
    """The shapes of all kernels of timm's EfficientNet, MobileNetV3 and MobileNetV4 models, as UTF-8 bytes of JSON."""
    patterns = ["*efficientnet", "*efficientnet_*", "*efficientnetv2_*", "*mobilenetv3_*", "*mobilenetv4_conv_*"]
    shapes: dict[str, Any] = {}
    for architecture in timm.list_models(patterns, exclude_filters=["*_b?_pruned"]):
        with torch.device("meta"):
            state = timm.create_model(architecture, num_classes=0).state_dict()
        shapes[architecture] = {name: list(tensor.shape) for name, tensor in state.items() if tensor.ndim > 1}
    return {"shapes": np.array(bytearray(json.dumps(shapes).encode()))}


# classifiers, with the names of their classes


def classifier_of_transformers(kind: str, **config: Any) -> Callable[[Path, Generator], Arrays]:
    def make_it(folder: Path, rng: Generator) -> Arrays:
        names = {i: f"class {i}" for i in range(5)}
        settings = getattr(transformers, f"{kind}Config")(
            **config, id2label=names, label2id={n: i for i, n in names.items()}
        )
        model = randomize(getattr(transformers, f"{kind}ForImageClassification")(settings), rng)
        model.save_pretrained(folder)
        pixels = images(rng, 64)
        pooled = getattr(model, model.base_model_prefix)(nchw(pixels)).pooler_output
        return {"pixel_values": pixels, "pooler_output": pooled, "logits": model(nchw(pixels)).logits}

    return make_it


def classifier_of_timm(architecture: str, **arguments: Any) -> Callable[[Path, Generator], Arrays]:
    def make_it(folder: Path, rng: Generator) -> Arrays:
        model = timm_model(architecture, folder, rng, classes=5, **arguments)
        pixels = images(rng, 64)
        states = model.forward_features(nchw(pixels))
        pooled = model.forward_head(states, pre_logits=True)
        return {"pixel_values": pixels, "features": pooled, "logits": model.forward_head(states)}

    return make_it


def resized_classifier_of_timm(architecture: str, size: int, others: Sequence[int], **arguments: Any) -> Any:
    """A classifier, and its features after ``set_input_size``, which resamples tables of relative positions."""

    def make_it(folder: Path, rng: Generator) -> Arrays:
        model = timm_model(architecture, folder, rng, classes=5, img_size=size, **arguments)

        def outputs(model: nn.Module, size: int, suffix: str = "") -> Arrays:
            pixels = images(rng, size, batch=1)
            states = model.forward_features(nchw(pixels))
            pooled = model.forward_head(states, pre_logits=True)
            found = {"pixel_values": pixels, "features": pooled, "logits": model.forward_head(states)}
            return {key + suffix: value for key, value in found.items()}

        arrays = outputs(model, size)
        for other in others:
            resized = copy.deepcopy(model)
            resized.set_input_size((other, other))
            arrays |= outputs(resized, other, f"_{other}")
        return arrays

    return make_it


# open_clip


def open_clip_gelu(folder: Path, rng: Generator) -> Arrays:
    vision = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32, "mlp_ratio": 2.0}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    model = randomize(open_clip.CLIP(**config), rng)
    set_model_preprocess_cfg(model, asdict(PreprocessCfg(size=32)))
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")

    larger = open_clip.CLIP(**config | {"vision_cfg": vision | {"image_size": 48}}).eval()
    state = model.state_dict()
    resize_pos_embed(state, larger)
    larger.load_state_dict(state)

    pixels, pixels_48 = images(rng, 32), images(rng, 48, batch=1)
    ids = rng.integers(1, 62, (3, 8))
    for row, length in zip(ids, (8, 5, 3), strict=True):
        row[length - 1] = 63  # the largest id ends a text
        row[length:] = 0
    return {
        "pixel_values": pixels,
        "image_embeds": model.encode_image(nchw(pixels), normalize=True),
        "input_ids": ids,
        "text_embeds": model.encode_text(torch.from_numpy(ids), normalize=True),
        "pixel_values_48": pixels_48,
        "image_embeds_48": larger.encode_image(nchw(pixels_48), normalize=True),
    }


OPEN_CLIP_TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2}


def save_open_clip(folder: Path, model: nn.Module, config: dict[str, Any], size: int, weights: bool = True) -> None:
    set_model_preprocess_cfg(model, asdict(PreprocessCfg(size=size)))
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    if weights:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def embeddings(model: Any, pixels: np.ndarray, ids: np.ndarray) -> Arrays:
    """What open_clip makes of images and of texts."""
    return {
        "pixel_values": pixels,
        "image_embeds": model.encode_image(nchw(pixels), normalize=True),
        "input_ids": ids,
        "text_embeds": model.encode_text(torch.from_numpy(ids), normalize=True),
    }


def open_clip_options(folder: Path, rng: Generator) -> Arrays:
    """Every option of open_clip's own towers that is supported and not its default."""
    shared = {"ls_init_value": 0.1, "norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}
    vision = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32, "mlp_ratio": 2.5}
    vision |= {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, **shared}
    text = OPEN_CLIP_TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, **shared}
    config = {"embed_dim": 24, "init_logit_bias": -10, "vision_cfg": vision, "text_cfg": text}
    model = randomize(open_clip.CustomTextCLIP(**config), rng)
    save_open_clip(folder, model, config | {"custom_text": True}, 32)
    pixels, ids = images(rng, 32), token_rows(rng, end=63, padding=0)
    logits, _ = model.get_logits(nchw(pixels), torch.from_numpy(ids))
    return embeddings(model, pixels, ids) | {"logits_per_image": logits}


def open_clip_eos(folder: Path, rng: Generator) -> Arrays:
    """A text tower that pools at a token which is not the highest, and image features normalized before the mean."""
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32, "pool_type": "avg"}
    text = OPEN_CLIP_TEXT | {"pool_type": "eos", "eos_id": 2, "proj_type": "none"}
    config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    model = randomize(open_clip.CLIP(**config), rng)
    save_open_clip(folder, model, config, 32)
    return embeddings(model, images(rng, 32), token_rows(rng, end=2, padding=1))


def open_clip_resnet(folder: Path, rng: Generator) -> Arrays:
    """Embeddings, and one pass of the vision tower in training mode: running statistics after it, and gradients."""
    vision = {"layers": [2, 1, 1, 1], "width": 2, "head_width": 16, "image_size": 64, "patch_size": None}
    text = OPEN_CLIP_TEXT | {"width": 8, "layers": 1}
    config = {"embed_dim": 12, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    model = randomize(open_clip.CLIP(**config), rng)
    save_open_clip(folder, model, config, 64)
    pixels = images(rng, 64, batch=4)
    arrays = embeddings(model, pixels, token_rows(rng, end=63, padding=0))

    visual = model.visual.train()
    with torch.enable_grad():
        loss = (visual(nchw(pixels)) ** 2).mean()
        loss.backward()
    statistics = {name: value for name, value in visual.named_buffers() if "running" in name}
    return {
        **arrays,
        "loss": loss,
        **{f"after/visual.{name}": value for name, value in statistics.items()},
        **{f"grad/visual.{name}": parameter.grad for name, parameter in visual.named_parameters()},
    }


def open_clip_convnext(folder: Path, rng: Generator) -> Arrays:
    """A vision tower of timm, whose sizes cannot be chosen: its weights are not kept."""
    vision = {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": OPEN_CLIP_TEXT}
    model = open_clip.CLIP(**config).eval()
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.as_tensor(seeded(name, tuple(tensor.shape))))
    save_open_clip(folder, model, config, 64, weights=False)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    (folder / "shapes.json").write_text(json.dumps(shapes))
    return embeddings(model, images(rng, 64), token_rows(rng, end=63, padding=0))


# PyTorch itself


def positions(folder: Path, rng: Generator) -> Arrays:
    """Bicubic resizing of grids [height, width, channels]: ``out_4_6_antialias`` is ``grid_4`` made 6 x 6."""
    arrays: Arrays = {}
    for side in (4, 7):
        grid = torch.from_numpy(rng.uniform(-1, 1, (1, 3, side, side)).astype(np.float32))
        arrays[f"grid_{side}"] = grid[0].permute(1, 2, 0)
        for target in (6, 3, 16, 5):
            for kind in ("plain", "antialias"):
                resized = functional.interpolate(
                    grid, (target, target), mode="bicubic", align_corners=False, antialias=kind == "antialias"
                )
                arrays[f"out_{side}_{target}_{kind}"] = resized[0].permute(1, 2, 0)
    return arrays


def optimizers(folder: Path, rng: Generator) -> Arrays:
    """A small network's parameters after each of 20 steps of PyTorch's optimizers, and the rates of its schedules."""
    steps, batch, sizes = 20, 16, (5, 8, 3)
    images = rng.standard_normal((steps, batch, sizes[0])).astype(np.float32)
    labels = rng.integers(0, sizes[2], (steps, batch))
    start = [rng.standard_normal(shape).astype(np.float32) * 0.5 for shape in ((8, 5), (8,), (3, 8), (3,))]
    kinds: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "adam": lambda params: torch.optim.Adam(params, lr=0.02, weight_decay=0.05),
        "adamw": lambda params: torch.optim.AdamW(params, lr=0.02, weight_decay=0.05),
        "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.05),
        "nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.05),
    }
    found: Arrays = {"images": images, "labels": labels} | {f"start_{i}": leaf for i, leaf in enumerate(start)}
    for name, make_optimizer in kinds.items():
        for schedule in ("constant", "cosine"):
            leaves = [torch.tensor(leaf, requires_grad=True) for leaf in start]
            optimizer = make_optimizer(leaves)
            rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps) if schedule == "cosine" else None
            after: list[list[np.ndarray]] = []
            for x, y in zip(torch.tensor(images), torch.tensor(labels), strict=True):
                with torch.enable_grad():
                    hidden = torch.tanh(functional.linear(x, leaves[0], leaves[1]))
                    loss = functional.cross_entropy(functional.linear(hidden, leaves[2], leaves[3]), y)
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                if rates:
                    rates.step()
                after.append([leaf.detach().numpy().copy() for leaf in leaves])
            found |= {f"{name}_{schedule}_{i}": np.stack([leaves[i] for leaves in after]) for i in range(len(start))}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    found["one_cycle"] = np.array(
        [(cycle.get_last_lr()[0], optimizer.step(), cycle.step())[0] for _ in range(steps - 1)]
    )
    return found


# Image preparation: timm's own words for what its evaluation does.
SIZES = ((37, 21), (21, 37), (64, 64), (65, 66), (1, 50), (90, 31), (17, 16))
PIXELS: dict[str, dict[str, Any]] = {
    "bicubic": {"size": 32, "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"},
    "bilinear": {"size": 33, "interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "center"},
    "whole": {"size": 24, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"},
    "squash": {"size": 29, "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "squash"},
}


def timm_pixels(folder: Path, rng: Generator) -> Arrays:
    """Images of odd sizes, what timm's evaluation transform makes of them, and one of them normalized."""
    sources = {f"{width}x{height}": rng.integers(0, 8, (height, width, 3), np.uint8) * 36 for width, height in SIZES}
    arrays: Arrays = {f"source_{name}": pixels for name, pixels in sources.items()}
    for label, config in PIXELS.items():
        options = {**config, "input_size": (3, config["size"], config["size"])}
        del options["size"]
        transform = timm.data.create_transform(**options, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        for name, pixels in sources.items():
            image = Image.fromarray(pixels)
            for step in transform.transforms[:-2]:  # the last two make a tensor and normalize it
                image = step(image)
            arrays[f"{label}_{name}"] = np.asarray(image)
        arrays[f"{label}_normalized"] = transform(Image.fromarray(sources["37x21"])).permute(1, 2, 0).contiguous()
    return arrays


BINS = (0, 9, 15, 20, 30)  # of 31


def augment_policies(folder: Path, rng: Generator) -> Arrays:
    """torchvision's magnitudes in all bins, and what each operation makes of an image in some: [sign, bin, ...]."""
    height, width = 20, 24
    pixels = (np.linspace(20, 200, width)[:, None] + rng.integers(0, 56, (height, width, 3))).astype(np.uint8)
    image = Image.fromarray(pixels)
    spaces = {
        "randaugment": RandAugment()._augmentation_space(31, (height, width)),
        "trivialaugment": TrivialAugmentWide()._augmentation_space(31),
    }
    arrays: Arrays = {"source": pixels, "bins": BINS}
    for space, operations in spaces.items():
        for name, (values, signed) in operations.items():
            magnitudes = values.expand(31)
            arrays[f"magnitudes_{space}_{name.lower()}"] = magnitudes
            arrays[f"images_{space}_{name.lower()}"] = np.stack(
                [
                    [_apply_op(image, name, sign * float(magnitudes[b]), InterpolationMode.NEAREST, None) for b in BINS]
                    for sign in ((1, -1) if signed else (1,))
                ]
            )
    return arrays


def losses(folder: Path, rng: Generator) -> Arrays:
    """PyTorch's losses, reduced as it does by default."""
    logits = torch.tensor(rng.standard_normal((6, 4)).astype(np.float32) * 3)
    labels, weights = torch.tensor([0, 3, 1, 1, 2, 0]), torch.tensor([0.5, 2.0, 1.0, 0.1])
    soft = torch.softmax(torch.tensor(rng.standard_normal((6, 4)).astype(np.float32)), -1)
    several = torch.tensor(rng.integers(0, 2, (6, 4)).astype(np.float32))
    cross_entropy = functional.cross_entropy
    return {
        "logits": logits,
        "labels": labels,
        "weights": weights,
        "soft": soft,
        "several": several,
        "plain": cross_entropy(logits, labels),
        "smooth": cross_entropy(logits, labels, label_smoothing=0.1),
        "weighted": cross_entropy(logits, labels, weight=weights),
        "smooth_weighted": cross_entropy(logits, labels, weight=weights, label_smoothing=0.1),
        "of_soft": cross_entropy(logits, soft),
        "of_soft_smooth_weighted": cross_entropy(logits, soft, weight=weights, label_smoothing=0.1),
        "sigmoid": functional.binary_cross_entropy_with_logits(logits, several),
        "sigmoid_smooth": BinaryCrossEntropy(smoothing=0.1)(logits, labels),
    }


GOLDENS: dict[str, Callable[[Path, Generator], Arrays]] = {
    "siglip": siglip,
    "dinov2-swiglu": dinov2_swiglu,
    "dinov2-registers": dinov2_registers,
    "vit": vit,
    "vit-classifier": vit_classifier,
    "deit": deit,
    "clip-vision-interpolated": clip_vision_interpolated,
    "mobilenet-v2": mobilenet_v2,
    "batchnorm-step": batchnorm_step,
    "dinov3-step": dinov3_step,
    "dinov3-convnext": dinov3_convnext,
    "tipsv2": tipsv2,
    "aimv2-step": aimv2_step,
    "timm-dinov3-gated": timm_dinov3_gated,
    "timm-eva02-classifier": timm_eva02_classifier,
    "timm-eva02-step": timm_eva02_step,
    "timm-eva02-clip-step": timm_eva02_clip_step,
    "timm-pe-core-step": timm_pe_core_step,
    "timm-tipsv2-48": timm_tipsv2_48,
    "timm-aimv2-48": timm_aimv2_48,
    "swin-step": swin_step,
    "swin-classifier": classifier_of_transformers(
        "Swin", image_size=64, embed_dim=4, depths=[1, 1], num_heads=[1, 2], window_size=4
    ),
    "swinv2-step": swinv2_step,
    "swinv2-classifier": classifier_of_transformers(
        "Swinv2", image_size=64, embed_dim=4, depths=[1, 1], num_heads=[1, 2], window_size=4
    ),
    "timm-swin-classifier": resized_classifier_of_timm(
        "swin_tiny_patch4_window7_224", 32, (20, 48), **TIMM_SWIN, window_size=4
    ),
    "timm-swinv2-classifier": resized_classifier_of_timm(
        "swinv2_tiny_window8_256", 32, (20, 48), **TIMM_SWIN, window_size=4, pretrained_window_sizes=(3, 0, 0)
    ),
    "beit-step": beit_step,
    "masked-beit": masked_beit,
    "beit-classifier": classifier_of_transformers(
        "Beit", **ENCODER, image_size=64, patch_size=16, use_relative_position_bias=True
    ),
    "timm-beit-classifier": resized_classifier_of_timm("beit_base_patch16_224", 32, (24, 48), **TIMM_VIT, patch_size=8),
    "vit-mae": vit_mae,
    "ijepa": ijepa,
    "ijepa-classifier": ijepa_classifier,
    "efficientnet-step": efficientnet_step,
    "timm-vit-48": timm_vit_48,
    "timm-vit-registers": timm_vit_registers,
    "timm-vit-siglip": timm_vit_siglip,
    "timm-deit-distilled": timm_deit_distilled,
    "timm-resnet50d": timm_resnet50d,
    "timm-resnext": timm_resnext,
    "timm-convnext": timm_convnext,
    "timm-convnextv2": timm_convnextv2,
    "timm-efficientnetv2": timm_efficientnetv2,
    "timm-efficientnet-classifier": classifier_of_timm("test_efficientnet", channel_multiplier=0.1),
    "timm-efficientnet-shapes": timm_efficientnet_shapes,
    "mobile-blocks": mobile_blocks,
    "efficientnet-classifier": classifier_of_transformers("EfficientNet", **EFFICIENTNET),
    "resnet-classifier": classifier_of_transformers(
        "ResNet", embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    ),
    "convnext-classifier": classifier_of_transformers(
        "ConvNext", hidden_sizes=[4, 8, 8, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
    ),
    "mobilenet-v2-classifier": classifier_of_transformers(
        "MobileNetV2", depth_multiplier=0.05, depth_divisible_by=4, min_depth=4, finegrained_output=False, image_size=64
    ),
    "timm-vit-classifier": classifier_of_timm("vit_tiny_patch16_224", **TIMM_VIT, img_size=64),
    "timm-resnet-classifier": classifier_of_timm("resnet18", layers=(1, 1, 1, 1), channels=(4, 4, 8, 8)),
    "timm-convnext-classifier": classifier_of_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 16)),
    "open-clip": open_clip_gelu,
    "open-clip-options": open_clip_options,
    "open-clip-eos": open_clip_eos,
    "open-clip-resnet": open_clip_resnet,
    "open-clip-convnext": open_clip_convnext,
    "metaclip2": metaclip2,
    "metaclip2-vision": metaclip2_vision,
    "clip-classifier": classifier_of_two_towers("CLIP"),
    "siglip-classifier": classifier_of_two_towers("Siglip"),
    "positions": positions,
    "optimizers": optimizers,
    "losses": losses,
    "timm-pixels": timm_pixels,
    "augment-policies": augment_policies,
}


def make(name: str) -> int:
    """Make one golden anew; gives its size in bytes."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rng = np.random.default_rng(zlib.crc32(name.encode()))  # of its own, so that each can be made alone
    with torch.no_grad():
        expected = GOLDENS[name](folder, rng)
    arrays = {key: np.asarray(torch.as_tensor(value).detach(), order="C") for key, value in expected.items()}
    np.savez_compressed(folder / "expected.npz", **arrays)
    for file in folder.iterdir():
        file.chmod(0o644)  # some of the libraries write files that only their owner can read
    return sum(file.stat().st_size for file in folder.iterdir())


def main(names: list[str]) -> None:
    if unknown := sorted(set(names) - set(GOLDENS)):
        sys.exit(f"no such golden: {', '.join(unknown)}; there are {', '.join(GOLDENS)}")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    for name in names or GOLDENS:
        print(f"{name:26}{make(name) / 1024:7.1f} KiB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
