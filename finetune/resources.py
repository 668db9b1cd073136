"""Where the recipes and weights that come with the package are, installed or in a clone."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import ModelError

_PACKAGE = Path(__file__).parent
_ROOT = _PACKAGE / "_bundled" if (_PACKAGE / "_bundled").is_dir() else _PACKAGE.parent


def recipes() -> dict[str, Path]:
    """Name -> file of every bundled recipe."""
    return {path.stem: path for path in sorted((_ROOT / "recipes").glob("*.yaml"))}


def checkpoint(name: str) -> Path:
    """The folder of a bundled checkpoint.

    Raises:
        ModelError: there is none of that name.
    """
    folders = {path.parent.name: path.parent for path in sorted((_ROOT / "checkpoints").glob("*/model.safetensors"))}
    if name not in folders:
        raise ModelError(f"builtin:{name}: no such bundled checkpoint; there are: {', '.join(folders) or 'none'}")
    return folders[name]
