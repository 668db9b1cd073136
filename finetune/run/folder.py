"""A run's folder: what is written there, and whether a run may start in it."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.recipe import Recipe, load_recipe
from finetune.recipe.source import dump

_PARTIAL = ("run.json.new", "summary.json.new", "model.new", "model.old")
_SKIPPED = "skipped_images.txt"
_OWN = ("recipe.yaml", "run.json", "metrics.jsonl", "summary.json", "state", "model", "figures", _SKIPPED, *_PARTIAL)


class RunFolder:
    """``recipe.yaml``, ``run.json``, ``metrics.jsonl``, ``summary.json``, ``state/`` and ``model/`` of one run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.model = directory / "model"
        self.figures = directory / "figures"
        self._metrics = directory / "metrics.jsonl"

    def start(self, recipe: Recipe, about: Mapping[str, Any]) -> None:
        """Makes the folder for a new run.

        Raises:
            CheckpointError: it already holds a run, or something else.
        """
        if self.directory.is_file():
            raise CheckpointError(f"{self.directory}: the output is a folder, and a file of that name is there")
        if self.directory.is_dir() and any(self.directory.iterdir()):
            what = "already holds a run" if self.holds_run() else "is not empty"
            raise CheckpointError(
                f"{self.directory}: {what}; continue it with --resume, replace it with --overwrite, "
                "or choose another folder with --output"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write("run.json", about)
        (self.directory / "recipe.yaml").write_text(dump(recipe.model_dump(exclude_unset=True)), encoding="utf-8")

    def list_skipped(self, lines: Sequence[str]) -> None:
        (self.directory / _SKIPPED).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def holds_run(self) -> bool:
        return (self.directory / "run.json").is_file()

    def clear(self) -> None:
        """Removes what a run wrote, and nothing else."""
        if not self.holds_run():
            return
        for name in _OWN:
            path = self.directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def check_same(self, recipe: Recipe, backbone_sha256: str, data_sha256: str) -> None:
        """Before a run goes on.

        Raises:
            CheckpointError: it was started with another recipe, other pretrained weights or other images.
        """
        saved, given = _flat(self.recipe().model_dump()), _flat(recipe.model_dump())
        differing = sorted(key for key in saved.keys() | given.keys() if saved.get(key) != given.get(key))
        if differing:
            raise CheckpointError(
                f"{self.directory}: cannot resume: the run was started with another {', '.join(differing[:5])}; "
                "give the same recipe and overrides, or another --output"
            )
        if self._read("run.json").get("backbone_sha256") != backbone_sha256:
            raise CheckpointError(
                f"{self.directory}: cannot resume: backbone.source has other weights than at the start"
            )
        if self._read("run.json").get("data_sha256") != data_sha256:
            raise CheckpointError(
                f"{self.directory}: cannot resume: data.source has other images or labels than at the start; "
                "bring those back, or start anew with --overwrite"
            )

    def recipe(self) -> Recipe:
        return load_recipe(self.directory / "recipe.yaml")

    def log(self, record: Mapping[str, Any]) -> None:
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All that was logged."""
        try:
            return [json.loads(line) for line in self._metrics.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._metrics}: cannot be read: {error}") from None

    def cut_log(self, lines: int) -> None:
        """Forgets what was logged after the state that a resumed run starts from."""
        if self._metrics.is_file():
            kept = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
            self._metrics.write_text("".join(kept), encoding="utf-8")

    def log_lines(self) -> int:
        return len(self._metrics.read_text(encoding="utf-8").splitlines()) if self._metrics.is_file() else 0

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write("summary.json", summary)

    def summary(self) -> dict[str, Any] | None:
        """Of a finished run; None while it is not."""
        return self._read("summary.json") if (self.directory / "summary.json").is_file() else None

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.directory / name).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.directory / name}: damaged: {error}; start anew with --overwrite") from None

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        """Whole or not at all: written beside, then renamed."""
        beside = self.directory / f"{name}.new"
        beside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.directory / name)


def about_run(recipe: Recipe, backbone_sha256: str, data_sha256: str) -> dict[str, Any]:
    """What ``run.json`` says: with what the run was made."""
    import jax

    packages = ("flax-finetune", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": recipe.seed,
        "backbone_sha256": backbone_sha256,
        "data_sha256": data_sha256,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
    }


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in _flat(value, f"{path}.{key}" if path else str(key)).items()}
    return {path: tree}
