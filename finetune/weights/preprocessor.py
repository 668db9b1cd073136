"""Reads how a checkpoint's images are prepared: one function for each layout."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from PIL import Image

from finetune.errors import ModelError
from finetune.images.spec import ImageSpec
from finetune.untrusted import read_json
from finetune.weights.layout import Checkpoint

_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_OPENAI = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_UNNORMALIZED = {"do_normalize": False, "image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
_NEAREST, _BILINEAR, _BICUBIC = 0, 2, 3
_SHORTEST_224, _SQUARE_224 = {"shortest_edge": 224}, {"height": 224, "width": 224}
_SQUARE_448 = {"height": 448, "width": 448}

# transformers' image processors, with the values of published checkpoints as defaults. `square`: whether a plain number
# as size means height and width, rather than the shortest edge.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIP": {"size": _SHORTEST_224, "crop_size": 224, "resample": _BICUBIC, **_OPENAI},
    "Siglip": {"size": _SQUARE_224, "do_center_crop": False, "resample": _BICUBIC, "square": True, **_HALF},
    "ViT": {"size": _SQUARE_224, "do_center_crop": False, "resample": _BILINEAR, "square": True, **_HALF},
    "DeiT": {"size": 256, "crop_size": 224, "resample": _BICUBIC, "square": True, **_HALF},
    "Beit": {"size": _SQUARE_224, "do_center_crop": False, "resample": _BICUBIC, "square": True, **_HALF},
    "Bit": {"size": {"shortest_edge": 256}, "crop_size": 224, "resample": _BICUBIC, **_IMAGENET},
    "DINOv3ViT": {"size": _SQUARE_224, "do_center_crop": False, "resample": _BILINEAR, "square": True, **_IMAGENET},
    "Tipsv2": {"size": _SQUARE_448, "do_center_crop": False, "resample": _BILINEAR, "square": True, **_UNNORMALIZED},
    "ConvNext": {"size": _SHORTEST_224, "crop_pct": 0.875, "resample": _BICUBIC, **_IMAGENET},
    "MobileNetV2": {"size": {"shortest_edge": 256}, "crop_size": 224, "resample": _BILINEAR, **_HALF},
    "EfficientNet": {
        "size": {"height": 346, "width": 346},
        "do_center_crop": False,
        "crop_size": 289,
        "resample": _BICUBIC,
        "include_top": True,
        **_HALF,
    },
}


def read_image_spec(
    checkpoint: Checkpoint, *, processor: str = "", native: int | None = None, size: int | None = None
) -> ImageSpec:
    """How a checkpoint's images are prepared.

    Args:
        processor: the image processor of transformers to assume where no file names one.
        native: edge in pixels that the model is configured for; None if it takes any size.
        size: edge in pixels to use instead; the resize rule scales with it.

    Raises:
        ModelError: the files ask for a step that is not supported, or a value is missing or invalid.
    """
    try:
        if checkpoint.layout == "timm":
            return _from_timm(
                checkpoint.config.get("pretrained_cfg", {}), size or native, f"{checkpoint.file}: pretrained_cfg"
            )
        if checkpoint.layout == "open_clip":
            vision = checkpoint.config.get("model_cfg", {}).get("vision_cfg", {})
            size = size or native or vision.get("image_size") or 224
            return _from_open_clip(
                checkpoint.config.get("preprocess_cfg", {}), _square(size), f"{checkpoint.file}: preprocess_cfg"
            )
        return _from_transformers(checkpoint, processor, native, size)
    except KeyError as error:
        raise ModelError(f"{checkpoint.folder}: its image preprocessing has no {error}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ModelError(f"{checkpoint.folder}: its image preprocessing cannot be read: {error}") from None


def _from_transformers(checkpoint: Checkpoint, processor: str, native: int | None, size: int | None) -> ImageSpec:
    file = checkpoint.folder / "preprocessor_config.json"
    combined = checkpoint.folder / "processor_config.json"  # transformers 5: image processor and tokenizer settings
    if file.is_file():
        spec = from_processor(read_json(file), str(file), processor)
    elif combined.is_file() and "image_processor" in (settings := read_json(combined)):
        spec = from_processor(settings["image_processor"], str(combined), processor)
    else:
        spec = from_processor({}, str(checkpoint.folder), processor)
        size = size or native
    return spec.at(size) if size else spec


def from_processor(config: dict[str, Any], where: str, default: str = "CLIP") -> ImageSpec:
    """Reads a transformers ``preprocessor_config.json``.

    Args:
        config: content of the file.
        where: name of the file, for messages.
        default: the image processor to assume where the file names none.

    Raises:
        ModelError: it asks for a step that is not supported, or a value is missing or invalid.
    """
    named = config.get("image_processor_type") or config.get("feature_extractor_type") or default
    processor = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(named))
    if processor not in _PROCESSORS:
        raise ModelError(f"{where}: image processor {named!r} is not supported; supported: {', '.join(_PROCESSORS)}")
    try:
        # null means the default, except for a step (do_...), where it means no
        settings = {key: value for key, value in config.items() if value is not None or key.startswith("do_")}
        return _from_settings({**_PROCESSORS[processor], **settings}, processor, where)
    except KeyError as error:
        raise ModelError(f"{where}: has no {error}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{where}: not the configuration of an image processor: {error}") from None


def _from_settings(config: dict[str, Any], processor: str, where: str) -> ImageSpec:
    _require_flags(config)
    if not config.get("do_rescale", True) or abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ModelError(f"{where}: only a rescale by 1/255 is supported; received {config.get('rescale_factor')}")
    geometry: Callable[..., tuple[Any, tuple[int, int]]] = (
        _crop_percent if processor == "ConvNext" else _resize_and_crop
    )
    resize, (height, width) = geometry(config, where)
    normalizes = config.get("do_normalize", True)
    return ImageSpec(
        height=height,
        width=width,
        resize=resize if config.get("do_resize", True) else None,
        interpolation=Image.Resampling(_whole(config["resample"])).name.lower(),  # type: ignore[arg-type]
        mean=_channels(config["image_mean"]) if normalizes else (0.0, 0.0, 0.0),
        std=_deviations(config, where),
    )


def _require_flags(config: dict[str, Any]) -> None:
    """Steps are on or off: the text "false" would be on."""
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "rescale_offset", "include_top"):
        if not isinstance(config.get(name), bool | None):
            raise TypeError(f"{name}: needs true or false; received {config[name]!r}")


def _deviations(config: dict[str, Any], where: str) -> tuple[float, float, float]:
    """What the channels are divided by. EfficientNet's processor divides twice: again for ``include_top``."""
    if config.get("rescale_offset", False):
        raise ModelError(f"{where}: rescale_offset is not supported")
    times = int(bool(config.get("do_normalize", True))) + int(bool(config.get("include_top", False)))
    red, green, blue = _channels(config["image_std"])
    return red**times, green**times, blue**times


def _resize_and_crop(config: dict[str, Any], where: str) -> tuple[Any, tuple[int, int]]:
    size = _edges(config["size"], square=config.get("square", False))
    if config.get("do_center_crop", True):
        crop = _edges(config["crop_size"], square=True)
        return size, (crop if isinstance(crop, tuple) else (crop, crop))
    if isinstance(size, tuple):
        return size, size
    raise ModelError(f"{where}: without a centre crop, size needs height and width; received {config['size']}")


def _crop_percent(config: dict[str, Any], where: str) -> tuple[Any, tuple[int, int]]:
    """ConvNeXt's rule: below 384 pixels, resize to a larger size and crop; from 384 on, resize without a crop."""
    edge = _edges(config["size"], square=False)
    if isinstance(edge, tuple):
        raise ModelError(f"{where}: size needs shortest_edge; received {config['size']}")
    return (int(edge / config["crop_pct"]) if edge < 384 else (edge, edge)), (edge, edge)


def _edges(size: Any, square: bool) -> int | tuple[int, int]:
    """A processor's size, which may be an int, {shortest_edge} or {height, width}."""
    if not isinstance(size, dict):
        return (_whole(size), _whole(size)) if square else _whole(size)
    if "shortest_edge" in size:
        return _whole(size["shortest_edge"])
    return _whole(size["height"]), _whole(size["width"])


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"a whole number is needed; received {value!r}")
    return value


def _channels(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or any(isinstance(value, bool | str) for value in values):
        raise TypeError(f"a list of three numbers is needed; received {values!r}")
    red, green, blue = map(float, values)
    return red, green, blue


def _from_timm(config: dict[str, Any], size: int | None, where: str) -> ImageSpec:
    """timm's ``pretrained_cfg`` with timm's defaults; evaluation at ``input_size``."""
    size = size or _whole(config.get("input_size", (3, 224, 224))[-1])
    fraction, mode = config.get("crop_pct") or 0.875, config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ModelError(f"{where}: crop_mode {mode!r} is not supported; supported: center, squash")
    edge = math.floor(size / fraction)
    return _torchvision(config, size, edge if mode == "center" else (edge, edge), _IMAGENET, where)


def _square(size: Any) -> int:
    """The edge of a square that is given as one, or as [height, width]."""
    return _whole(size[0] if isinstance(size, list) and len(set(size)) == 1 else size)


def _from_open_clip(config: dict[str, Any], size: int, where: str) -> ImageSpec:
    mode = config.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise ModelError(f"{where}: resize_mode {mode!r} is not supported; supported: shortest, squash")
    return _torchvision(config, size, size if mode == "shortest" else (size, size), _OPENAI, where)


def _torchvision(
    config: dict[str, Any], size: int, resize: int | tuple[int, int], statistics: dict[str, Any], where: str
) -> ImageSpec:
    """What timm and open_clip share; ``statistics`` are the mean and std to use where the file has none."""
    return ImageSpec(
        height=size,
        width=size,
        resize=resize,
        interpolation=_filter(config.get("interpolation") or "bicubic", where),
        mean=_channels(config.get("mean") or statistics["image_mean"]),
        std=_channels(config.get("std") or statistics["image_std"]),
        rounding="even",
    )


def _filter(name: str, where: str) -> Any:
    known = [filter.name.lower() for filter in Image.Resampling]
    if name not in known:
        raise ModelError(f"{where}: interpolation {name!r} is not supported; supported: {', '.join(known)}")
    return name
