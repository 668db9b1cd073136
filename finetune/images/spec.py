"""The image preprocessing of a model: one description for training, evaluation, bundles and prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import PIL
from PIL import Image

if TYPE_CHECKING:
    import jax

_Array = TypeVar("_Array", np.ndarray, "jax.Array")
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
_RESAMPLING = {name: Image.Resampling[name.upper()] for name in Interpolation.__args__}  # type: ignore[attr-defined]
_ROUNDING = ("floor", "even")
LARGEST = 4096  # edge of a model's input, in pixels
_BRIGHTEST = 1e4  # of means and deviations; those of published models are below 1
_LONG = 16, 1 << 22  # times the pixels that are kept, and pixels, from which on a resized image counts as long
_ROWS_FIRST = int(PIL.__version__.partition(".")[0]) >= 13  # its order, where that leaves fewer rows
_LUMA = np.array([19595, 38470, 7471], np.uint32)  # ITU-R 601-2 in 1 / 65536


@dataclass(frozen=True)
class ImageSpec:
    """Resize, center crop, conversion to the model's channels, scaling to [0, 1] and normalization, in this order.

    Attributes:
        height, width: of the model's input, in pixels.
        resize: pixels of the shorter edge after the resize; (height, width) to resize to both; None for no resize.
        interpolation: Pillow's filter for the resize.
        rounding: of the crop's corner where the center falls between two pixels: "floor" as in transformers, "even" as
            in torchvision, which timm and open_clip use.
        mean, std: per channel, of pixels in [0, 1]; three values for RGB, one for grey.
    """

    height: int
    width: int
    resize: int | tuple[int, int] | None
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rounding: Literal["floor", "even"] = "floor"

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a value is of another type, or out of the range in which images can be prepared.
        """
        resize = self.resize if isinstance(self.resize, tuple) else () if self.resize is None else (self.resize,)
        if isinstance(self.resize, tuple) and len(resize) != 2:
            raise ValueError(f"resize: needs one edge, or height and width; received {_brief(self.resize)}")
        for name, edges, most in (("size", (self.height, self.width), LARGEST), ("resize", resize, 4 * LARGEST)):
            if not all(
                isinstance(edge, Integral) and not isinstance(edge, bool) and 1 <= edge <= most for edge in edges
            ):
                raise ValueError(f"{name}: needs edges of 1 to {most:,} pixels; received {_brief(edges)}")
        for name, values, least in (("mean", self.mean, -_BRIGHTEST), ("std", self.std, 1 / _BRIGHTEST)):
            if not isinstance(values, tuple) or len(values) not in (1, 3) or len(values) != len(self.mean):
                raise ValueError(f"{name}: needs a number for each of 3 channels, or 1; received {_brief(values)}")
            if not all(_is_number(value) and least <= value <= _BRIGHTEST for value in values):
                raise ValueError(f"{name}: needs numbers from {least:g} to {_BRIGHTEST:g}; received {_brief(values)}")
        for name, value, known in (
            ("interpolation", self.interpolation, _RESAMPLING),
            ("rounding", self.rounding, _ROUNDING),
        ):
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{name}: choose {', '.join(known)}; received {_brief(value)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the model's input."""
        return self.height, self.width, len(self.mean)

    @property
    def resampling(self) -> Image.Resampling:
        return _RESAMPLING[self.interpolation]

    def to_uint8(self, image: Image.Image) -> np.ndarray:
        """An RGB image as uint8 [height, width, channels]; bit for bit as transformers' PIL pipeline."""
        return self.to_channels(self.resize_and_crop(image))

    def resize_and_crop(self, image: Image.Image) -> np.ndarray:
        """An RGB image as uint8 [height, width, 3]."""
        if self.leaves_size(*image.size):
            return np.asarray(image)
        if self.resize is not None:
            if self._resized_is_mostly_cut_off(*image.size):
                return self._resize_what_is_kept(image)
            image = image.resize(self._resized(*image.size), self.resampling)
        left, top = self._corner(image.width - self.width), self._corner(image.height - self.height)
        if (left, top) != (0, 0) or image.size != (self.width, self.height):
            image = image.crop((left, top, left + self.width, top + self.height))  # pads with black
        return np.asarray(image)

    def _resized_is_mostly_cut_off(self, width: int, height: int) -> bool:
        """True of very long images, whose resized form could fill the memory."""
        resized_width, resized_height = self._resized(width, height)
        fits = resized_width >= self.width and resized_height >= self.height
        return fits and resized_width * resized_height > max(_LONG[0] * self.width * self.height, _LONG[1])

    def _resize_what_is_kept(self, image: Image.Image) -> np.ndarray:
        """The same pixels at the cost of what is kept; smooth filters' weights round to within two levels of 255."""
        width, height = self._resized(*image.size)
        tall = _ROWS_FIRST and height < image.height > image.width
        left, top = self._corner(width - self.width), self._corner(height - self.height)
        across, down = image.width / width, image.height / height
        x = left * across, min((left + self.width) * across, image.width)
        y = top * down, min((top + self.height) * down, image.height)
        around_x, around_y = _reached(x, across, image.width), _reached(y, down, image.height)
        image = image.crop((around_x[0], around_y[0], around_x[1], around_y[1]))
        x, y = (x[0] - around_x[0], x[1] - around_x[0]), (y[0] - around_y[0], y[1] - around_y[0])
        if tall:
            image = image.resize((image.width, self.height), self.resampling, (0, y[0], image.width, y[1]))
            image = image.resize((self.width, self.height), self.resampling, (x[0], 0, x[1], self.height))
        else:
            image = image.resize((self.width, image.height), self.resampling, (x[0], 0, x[1], image.height))
            image = image.resize((self.width, self.height), self.resampling, (0, y[0], self.width, y[1]))
        return np.asarray(image)

    def leaves_size(self, width: int, height: int) -> bool:
        """Whether images of this size are neither resized nor cropped."""
        return (width, height) == (self.width, self.height) and self.resize in (None, min(width, height))

    def to_channels(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 RGB [H, W, 3], unchanged for three channels; as luma [H, W, 1] for one, bit for bit as Pillow's."""
        if len(self.mean) == 3:
            return pixels
        return ((pixels @ _LUMA + 0x8000) >> 16).astype(np.uint8)[..., None]

    def _corner(self, margin: int) -> int:
        return margin // 2 if self.rounding == "floor" else round(margin / 2)  # Python rounds halves to even

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        edge = self.resize or 0
        short, long = sorted((width, height))
        other = int(edge * long / short)
        return (edge, other) if width <= height else (other, edge)

    def normalize(self, images: _Array) -> _Array:
        """uint8 [N, H, W, channels] to normalized float32 of the same shape. NumPy or JAX arrays, also inside jit."""
        mean, std = self._mean_and_std()
        return images.astype(np.float32) * (1.0 / (255.0 * std)) - mean / std

    def denormalize(self, images: _Array) -> _Array:
        """The inverse of :meth:`normalize`, to uint8; values out of range are clipped."""
        mean, std = self._mean_and_std()
        return ((images * std + mean) * 255.0).round().clip(0, 255).astype(np.uint8)

    def _mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)

    def at(self, size: int) -> ImageSpec:
        """The spec for square inputs with edges of ``size`` pixels; ``resize`` is scaled in proportion."""

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
        """
        Raises:
            ValueError: not what :meth:`to_json` gives; names the key.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping):
            raise ValueError(f"a mapping of {', '.join(names)}; received {data!r}")
        for key in data:
            if key not in names:
                raise ValueError(f"{key}: unknown key; there are: {', '.join(names)}")
        if missing := [name for name in names if name not in data and name != "rounding"]:
            raise ValueError(f"{missing[0]}: missing")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _brief(value: Any) -> str:
    return repr(value)[:100]


def _reached(kept: tuple[float, float], scale: float, size: int) -> tuple[int, int]:
    """The pixels along one axis that the widest filter uses for those that are kept."""
    margin = math.ceil(3 * max(1.0, scale)) + 1
    return max(0, math.floor(kept[0]) - margin), min(size, math.ceil(kept[1]) + margin)
