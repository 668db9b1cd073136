"""Whose files a checkpoint's folder holds: transformers', timm's or open_clip's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from finetune.errors import ModelError
from finetune.weights.tensors import TensorFolder

Layout = Literal["transformers", "timm", "open_clip"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose configuration has been read.

    Attributes:
        file: the configuration.
        kind: ``model_type`` (transformers), ``architecture`` (timm), or ``open_clip``.
        config: as the file has it.
    """

    folder: Path
    file: Path
    layout: Layout
    kind: str
    config: dict[str, Any]

    @cached_property
    def tensors(self) -> TensorFolder:
        """Raises ModelError where the weights are missing, pickled or damaged."""
        if self.layout == "open_clip":
            return TensorFolder(self.folder, ("open_clip_model.safetensors", "model.safetensors"))
        return TensorFolder(self.folder)


def open_checkpoint(folder: Path, *, prefer_open_clip: bool = False) -> Checkpoint:
    """Reads a folder's configuration.

    Args:
        folder: holds ``config.json`` (transformers, timm) or ``open_clip_config.json``.
        prefer_open_clip: where both are there, as in timm's copies of CLIP, take the one with a text tower.

    Raises:
        ModelError: none is there, it is damaged, or it says nothing about the kind of model.
    """
    file, open_clip = folder / "config.json", folder / "open_clip_config.json"
    if open_clip.is_file() and (not file.is_file() or (prefer_open_clip and "architecture" in read_json(file))):
        config = read_json(open_clip)
        towers = config.get("model_cfg")
        if not isinstance(towers, dict) or not {"vision_cfg", "text_cfg", "embed_dim"} <= towers.keys():
            raise ModelError(f"{open_clip}: needs a model_cfg with embed_dim, vision_cfg and text_cfg")
        return Checkpoint(folder, open_clip, "open_clip", "open_clip", config)
    if not file.is_file():
        raise ModelError(
            f"{folder}: not a checkpoint: it has no config.json (transformers, timm) and no open_clip_config.json; "
            "give a folder that save_pretrained wrote or that was downloaded from the hub"
        )
    config = read_json(file)
    if isinstance(config.get("model_type"), str):
        return Checkpoint(folder, file, "transformers", config["model_type"], config)
    if isinstance(config.get("architecture"), str):
        return Checkpoint(folder, file, "timm", config["architecture"], config)
    raise ModelError(f"{file}: has neither model_type (transformers) nor architecture (timm)")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file}: needs a JSON object; received {type(data).__name__}")
    return data
