"""With what a run is made: versions, devices, the command."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.recipe import Recipe


def about_run(recipe: Recipe, backbone_sha256: str, data_sha256: str, license: str | None = None) -> dict[str, Any]:
    """What ``run.json`` says: with what the run was made.

    Args:
        license: that the backbone's files state.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": recipe.seed,
        "backbone_sha256": backbone_sha256,
        "backbone_license": license,
        "data_sha256": data_sha256,
        **about_program(),
    }


def about_program() -> dict[str, Any]:
    """The program that is running, and where."""
    import jax

    packages = ("flax-finetune", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")
    return {
        "command": _command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in packages},
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
    }


def _command() -> str:
    """What this program was started with, as it would be typed."""
    program, *arguments = sys.argv
    name = "finetune" if program.endswith("finetune/cli/__main__.py") else Path(program).name
    return shlex.join([name, *arguments])
