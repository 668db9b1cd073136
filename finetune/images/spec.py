"""How a model wants its images: one description for training, evaluation, bundle and prediction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import jax

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
_RESAMPLING = {name: Image.Resampling[name.upper()] for name in Interpolation.__args__}  # type: ignore[attr-defined]
_LUMA = np.array([19595, 38470, 7471], np.uint32)  # ITU-R 601-2 in 1 / 65536


@dataclass(frozen=True)
class ImageSpec:
    """Resize, then crop to the centre, then to the model's channels, then scale and normalize.

    Attributes:
        height, width: of what the model sees, in pixels.
        resize: edge in pixels that the shorter side is brought to, (height, width) to bring both, or None.
        interpolation: Pillow's filter for the resize.
        rounding: which way the crop's corner goes where the centre falls between two pixels: "floor" as in
            transformers, "even" as in torchvision, which timm and open_clip use.
        mean, std: of each channel, after scaling to [0, 1]; three for RGB, one for grey.
    """

    height: int
    width: int
    resize: int | tuple[int, int] | None
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rounding: Literal["floor", "even"] = "floor"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of what the model sees."""
        return self.height, self.width, len(self.mean)

    def to_uint8(self, image: Image.Image) -> np.ndarray:
        """The RGB image as uint8 [height, width, channels]; equal to transformers' PIL pipeline."""
        return self.in_channels(self.fit(image))

    def in_channels(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 RGB [H, W, 3] as the model's channels: as it is, or its luma [H, W, 1], equal to Pillow's."""
        if len(self.mean) == 3:
            return pixels
        return ((pixels @ _LUMA + 0x8000) >> 16).astype(np.uint8)[..., None]

    def keeps(self, width: int, height: int) -> bool:
        """Whether images of this size stay as they are."""
        return (width, height) == (self.width, self.height) and self.resize in (None, min(width, height))

    def fit(self, image: Image.Image) -> np.ndarray:
        """The RGB image at the model's size, uint8 [height, width, 3]."""
        if self.keeps(*image.size):
            return np.asarray(image)
        if self.resize is not None:
            image = image.resize(self._resized(*image.size), self.resampling)
        left, top = self._corner(image.width - self.width), self._corner(image.height - self.height)
        if (left, top) != (0, 0) or image.size != (self.width, self.height):
            image = image.crop((left, top, left + self.width, top + self.height))  # beyond the edge: black
        return np.asarray(image)

    @property
    def resampling(self) -> Image.Resampling:
        return _RESAMPLING[self.interpolation]

    def _corner(self, margin: int) -> int:
        return margin // 2 if self.rounding == "floor" else round(margin / 2)  # Python rounds halves to even

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        edge = self.resize or 0
        short, long = sorted((width, height))
        other = int(edge * long / short)
        return (edge, other) if width <= height else (other, edge)

    def normalize(self, images: jax.Array) -> jax.Array:
        """uint8 [N, H, W, channels] to normalized float32 of the same shape; runs on the device, inside jit."""
        import jax.numpy as jnp

        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return images.astype(jnp.float32) * (1.0 / (255.0 * std)) - mean / std

    def denormalize(self, images: jax.Array) -> jax.Array:
        """The inverse of :meth:`normalize`, to uint8; what is out of range is cut off."""
        import jax.numpy as jnp

        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return jnp.clip(jnp.round((images * std + mean) * 255.0), 0, 255).astype(jnp.uint8)

    def at(self, size: int) -> ImageSpec:
        """The same for square images of another edge in pixels; what is resized to scales along."""

        def scaled(edge: int) -> int:
            return edge * size // self.height

        resize = self.resize
        if resize is not None:
            resize = scaled(resize) if isinstance(resize, int) else (scaled(resize[0]), scaled(resize[1]))
        return replace(self, height=size, width=size, resize=resize)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ImageSpec:
        resize = data["resize"]
        lists = {"resize": tuple(resize) if isinstance(resize, list) else resize}
        lists |= {key: tuple(data[key]) for key in ("mean", "std")}
        return cls(**{**data, **lists})
