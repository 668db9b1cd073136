"""What the page says of an image, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from finetune.demo.neighbors import TrainingImages
from finetune.errors import DataError, FinetuneError, listed
from finetune.export.confidence import KNOWN_SHARE
from finetune.foreign_errors import foreign_errors_translated
from finetune.images.open import ImageLike, open_image
from finetune.inference.explain import Explainer, Method
from finetune.inference.predictor import Prediction, Predictor
from finetune.page.html import picture, render

_BARS, _NEIGHBORS = 5, 6
_EDGE = 448  # of the large pictures, in pixels
_SMALL = 112  # edge of a model's input below which its pixels are shown as squares
_MAPS: dict[Method, str] = {
    "attention rollout": "Where it looks, for any class (attention rollout)",
    "Grad-CAM": "What speaks for {label} (Grad-CAM)",
    "gradient x input": "The pixels that decide on {label} (gradient x input)",
}


@dataclass(frozen=True)
class Respondent:
    """A model with all that the page shows beside its answer.

    Attributes:
        coverage: of the sets of classes, in (0, 1).
        training: to find the nearest of them; a sentence that says why there are none, or None for neither.
    """

    predictor: Predictor
    explainer: Explainer
    coverage: float
    training: TrainingImages | str | None

    def answer(self, path: Path) -> tuple[str, str]:
        """HTML of what the model sees, and of what it says; of a file that cannot be used, the reason alone."""
        try:
            with foreign_errors_translated():
                return self._answer(open_image(path), path.name)
        except FinetuneError as error:
            return "", render("demo_problem.html", problem=str(error).replace(str(path), path.name))

    def warm_up(self) -> None:
        """Compiles all that an answer takes, so that the first one does not wait for it."""
        spec = self.predictor.image_spec
        self._answer(Image.new("RGB", (spec.width, spec.height)), "black")

    def _answer(self, image: Image.Image, name: str) -> tuple[str, str]:
        coverage = self.coverage if self._gives_sets else None
        (prediction,) = self.predictor.predict([image], coverage=coverage)
        pixels = self.predictor.image_spec.to_uint8(image)
        heat = self.explainer.explain(image, prediction.index)
        view = render(
            "demo_view.html",
            seen=picture(pixels, f"{name} as the model sees it", _EDGE),
            name=name,
            map=picture(overlay(pixels, heat), f"map of the image: {self.explainer.method}", _EDGE),
            map_says=_describe_map(self.explainer.method, prediction.label, heat),
            small=max(pixels.shape[:2]) < _SMALL,
        )
        result = render(
            "demo_result.html",
            verdict=", ".join(prediction.labels) or "none of the classes",
            percent=_percent(prediction.confidence) if len(prediction.labels) == 1 else "",
            sentences=self._sentences(prediction),
            unknown=prediction.unknown,
            known=f"{KNOWN_SHARE:.0%}",
            bars=_bars(prediction),
            more=max(len(prediction.probabilities) - _BARS, 0),
            neighbors=self._neighbors(image),
            why_no_neighbors=self.training if isinstance(self.training, str) else "",
        )
        return view, result

    @property
    def _gives_sets(self) -> bool:
        return self.predictor.confidence is not None and not self.predictor.multi_label

    def _sentences(self, prediction: Prediction) -> list[str]:
        """What the validation images say of the answer."""
        if self.predictor.confidence is None:
            return ["The model has seen no validation images, so it cannot say how sure it may be."]
        if prediction.set is None:
            return []
        share, count = f"{100 * self.coverage:g}%", len(self.predictor.class_names)
        if not prediction.set:
            return [f"No class is as likely here as the right one is in {share} of cases."]
        if len(prediction.set) == count:
            return [f"Any of the {count} classes: no smaller set would hold the right one in {share} of cases."]
        members = sorted(prediction.set, key=lambda name: -prediction.probabilities[name])
        only = "Only" if len(members) == 1 else "One of"
        return [f"{only} {listed(members, _BARS)}: such sets hold the right class in {share} of cases."]

    def _neighbors(self, image: Image.Image) -> list[dict[str, Any]]:
        if not isinstance(self.training, TrainingImages):
            return []
        return [
            {
                "picture": _thumbnail(neighbor.image, f"a training image of {listed(neighbor.labels)}"),
                "label": listed(neighbor.labels, 3) or "no class",
                "similarity": f"{neighbor.similarity:.2f}",
            }
            for neighbor in self.training.nearest(image, _NEIGHBORS)
        ]


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image in grey under its map in colors: uint8 [H, W, 3].

    Args:
        pixels: uint8 [H, W, 3] or [H, W, 1].
        heat: float32 [H, W] in 0..1.
    """
    from matplotlib import colormaps

    grey = pixels.mean(axis=-1, keepdims=True) / 255
    colors = colormaps["inferno"](heat)[..., :3]
    opacity = 0.2 + 0.6 * heat[..., None]
    return ((grey * (1 - opacity) + colors * opacity) * 255).round().astype(np.uint8)


def _thumbnail(image: ImageLike, alt: str) -> Markup | None:
    """None of an image that was there at the start and no longer is."""
    try:
        return picture(open_image(image), alt)
    except DataError:
        return None


def _describe_map(method: Method, label: str, heat: np.ndarray) -> str:
    if not heat.any():
        return f"No part of the image speaks for {label} ({method})"
    return _MAPS[method].format(label=label)


def _bars(prediction: Prediction) -> Sequence[dict[str, Any]]:
    """The most probable classes, and which of them are in the set."""
    ordered = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])[:_BARS]
    members = prediction.labels if prediction.set is None else prediction.set
    return [
        {"label": name, "percent": _percent(share), "width": f"{share:.2%}", "member": name in members}
        for name, share in ordered
    ]


def _percent(share: float) -> str:
    return f"{share:.2%}"
