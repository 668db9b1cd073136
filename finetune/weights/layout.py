"""Which library's layout a checkpoint's folder has: transformers, timm or open_clip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from finetune.errors import ModelError, shown
from finetune.untrusted import read_json
from finetune.weights.tensors import TensorFolder

Layout = Literal["transformers", "timm", "open_clip"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder and its configuration.

    Attributes:
        folder: holds the configuration, the weights, and the image processor and tokenizer where it has them.
        file: the configuration file.
        layout: the library that wrote it.
        model_type: ``model_type`` (transformers), ``architecture`` (timm); of open_clip by its vision tower:
            ``open_clip`` (its own ViT), ``open_clip_resnet`` or ``open_clip_timm``.
        config: content of the configuration file.
    """

    folder: Path
    file: Path
    layout: Layout
    model_type: str
    config: dict[str, Any]

    @cached_property
    def tensors(self) -> TensorFolder:
        """The weights.

        Raises:
            ModelError: they are missing, pickled or damaged.
        """
        if self.layout == "open_clip":
            return TensorFolder(self.folder, ("open_clip_model.safetensors", "model.safetensors"))
        return TensorFolder(self.folder)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's settings of the weights; empty where there are none."""
        settings = self.config.get("pretrained_cfg")
        return settings if isinstance(settings, dict) else {}

    def with_tensors(self, tensors: TensorFolder) -> Checkpoint:
        """The same configuration with other tensors."""
        other = replace(self)
        other.__dict__["tensors"] = tensors
        return other


def open_checkpoint(folder: Path, *, prefer_open_clip: bool = False) -> Checkpoint:
    """Reads a folder's configuration.

    Args:
        folder: holds ``config.json`` (transformers, timm) or ``open_clip_config.json``.
        prefer_open_clip: where a folder has both, as timm's copies of CLIP do, read the one with a text tower.

    Raises:
        ModelError: the configuration is missing, cannot be read, or does not name the type of model.
    """
    file, open_clip = folder / "config.json", folder / "open_clip_config.json"
    if open_clip.is_file() and (not file.is_file() or (prefer_open_clip and "architecture" in read_json(file))):
        config = read_json(open_clip)
        towers = config.get("model_cfg")
        if not isinstance(towers, dict) or not {"vision_cfg", "text_cfg", "embed_dim"} <= towers.keys():
            raise ModelError(f"{shown(open_clip)}: needs a model_cfg with embed_dim, vision_cfg and text_cfg")
        return Checkpoint(folder, open_clip, "open_clip", _open_clip_tower(towers["vision_cfg"]), config)
    if not file.is_file():
        raise ModelError(
            f"{shown(folder)}: not a checkpoint: it has neither config.json (transformers, timm) nor "
            "open_clip_config.json; give a folder that save_pretrained wrote or that was downloaded from the hub"
        )
    config = read_json(file)
    if _is_name(config.get("model_type")):
        return Checkpoint(folder, file, "transformers", config["model_type"], config)
    if _is_name(config.get("architecture")):
        return Checkpoint(folder, file, "timm", config["architecture"], _with_settings(config))
    raise ModelError(f"{shown(file)}: has neither model_type (transformers) nor architecture (timm)")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200  # of a model; matched with many patterns


def _open_clip_tower(vision: Any) -> str:
    """The kind of vision tower that open_clip builds from a ``vision_cfg``."""
    if not isinstance(vision, dict):
        return "open_clip"
    if vision.get("timm_model_name"):
        return "open_clip_timm"
    return "open_clip_resnet" if isinstance(vision.get("layers"), list) else "open_clip"


def _with_settings(config: dict[str, Any]) -> dict[str, Any]:
    """timm's configuration with ``pretrained_cfg``, whose keys earlier versions wrote at the top level."""
    if isinstance(config.get("pretrained_cfg"), dict):
        return config
    return {**config, "pretrained_cfg": {key: value for key, value in config.items() if key != "model_args"}}
