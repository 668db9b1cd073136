"""How a model wants its images: one description for training, evaluation, bundle and prediction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from finetune.errors import ModelError

if TYPE_CHECKING:
    import jax

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
_RESAMPLING = {name: Image.Resampling[name.upper()] for name in Interpolation.__args__}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ImageSpec:
    """Resize, then crop to the centre, then scale and normalize.

    Attributes:
        height, width: of what the model sees, in pixels.
        resize: edge in pixels that the shorter side is brought to, (height, width) to bring both, or None.
        interpolation: Pillow's filter for the resize.
        mean, std: of each channel, after scaling to [0, 1].
    """

    height: int
    width: int
    resize: int | tuple[int, int] | None
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_uint8(self, image: Image.Image) -> np.ndarray:
        """The RGB image as uint8 [height, width, 3]; equal to transformers' PIL pipeline."""
        if self.resize is not None:
            image = image.resize(self._resized(*image.size), _RESAMPLING[self.interpolation])
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        if (left, top) != (0, 0) or image.size != (self.width, self.height):
            image = image.crop((left, top, left + self.width, top + self.height))  # beyond the edge: black
        return np.asarray(image)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        edge = self.resize or 0
        short, long = sorted((width, height))
        other = int(edge * long / short)
        return (edge, other) if width <= height else (other, edge)

    def normalize(self, images: jax.Array) -> jax.Array:
        """uint8 [N, H, W, 3] to normalized float32 of the same shape; runs on the device, inside jit."""
        import jax.numpy as jnp

        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return images.astype(jnp.float32) * (1.0 / (255.0 * std)) - mean / std

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ImageSpec:
        resize = data["resize"]
        lists = {"resize": tuple(resize) if isinstance(resize, list) else resize}
        lists |= {key: tuple(data[key]) for key in ("mean", "std")}
        return cls(**{**data, **lists})

    @classmethod
    def from_preprocessor(cls, config: dict[str, Any], where: str) -> ImageSpec:
        """Reads a transformers ``preprocessor_config.json``.

        Raises:
            ModelError: it asks for a step that this toolkit does not do, or lacks what describes one.
        """
        try:
            return cls._from_preprocessor(config, where)
        except KeyError as error:
            raise ModelError(f"{where}: has no {error}") from None
        except (TypeError, ValueError) as error:
            raise ModelError(f"{where}: not the configuration of an image processor: {error}") from None

    @classmethod
    def _from_preprocessor(cls, config: dict[str, Any], where: str) -> ImageSpec:
        if not config.get("do_rescale", True) or abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise ModelError(f"{where}: only a rescale by 1/255 is supported; received {config.get('rescale_factor')}")
        size, crop = _edges(config.get("size", 224)), _edges(config.get("crop_size", 224), square=True)
        resize = size if config.get("do_resize", True) else None
        if config.get("do_center_crop", True):
            height, width = crop if isinstance(crop, tuple) else (crop, crop)
        elif isinstance(size, tuple):
            height, width = size
        else:
            raise ModelError(f"{where}: without a centre crop, size needs height and width; received {config['size']}")
        normalizes = config.get("do_normalize", True)
        return cls(
            height=height,
            width=width,
            resize=resize,
            interpolation=Image.Resampling(config.get("resample", 3)).name.lower(),  # type: ignore[arg-type]
            mean=_channels(config, "image_mean") if normalizes else (0.0, 0.0, 0.0),
            std=_channels(config, "image_std") if normalizes else (1.0, 1.0, 1.0),
        )


def _channels(config: dict[str, Any], key: str) -> tuple[float, float, float]:
    red, green, blue = map(float, config[key])
    return red, green, blue


def _edges(size: Any, square: bool = False) -> int | tuple[int, int]:
    """A processor's ``size`` in any of the forms it has had: int, {shortest_edge}, {height, width}."""
    if isinstance(size, int):
        return (size, size) if square else size
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    return int(size["height"]), int(size["width"])
