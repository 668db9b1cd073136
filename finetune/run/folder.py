"""A run's folder: the only place that knows what its files are called."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import CheckpointError, first_line, listed
from finetune.files import REPLACED, UNFINISHED, json_text, write_json, write_text, written_atomically
from finetune.recipe import Recipe, load_recipe
from finetune.recipe.source import dump_recipe
from finetune.trees import Variables, flatten, unflatten

_RECIPE, _RUN, _SUMMARY, _METRICS = "recipe.yaml", "run.json", "summary.json", "metrics.jsonl"
_STATE, _MODEL, _FIGURES, _SKIPPED = "state", "model", "figures", "skipped_images.txt"
_PREDICTIONS, _START, _REPORT = "predictions.parquet", "start.safetensors", "report.html"
FINISHED = "finished"  # status of a run in its summary
_WRITTEN = (_RECIPE, _RUN, _SUMMARY, _METRICS, _STATE, _MODEL, _FIGURES, _SKIPPED, _PREDICTIONS, _START, _REPORT)


class RunFolder:
    """The folder of one run.

    Attributes:
        directory: the folder itself.
        state: what it takes to resume, by Orbax.
        model: the bundle.
        figures: pictures.
        predictions: what each step says of the test images.
        report: the run as a page.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.state = self.directory / _STATE
        self.model = self.directory / _MODEL
        self.figures = self.directory / _FIGURES
        self.predictions = self.directory / _PREDICTIONS
        self.report = self.directory / _REPORT
        self._metrics = self.directory / _METRICS
        self._start = self.directory / _START

    def check_free(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Before anything is loaded.

        Raises:
            CheckpointError: a run cannot be written here: there is a run already, or something else.
        """
        for path in (self.directory, *self.directory.parents):
            if path.exists() and not path.is_dir():
                raise CheckpointError(f"{path}: the output is a folder, and a file has that name")
        existing = next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise CheckpointError(f"{existing}: cannot be written to; choose another folder with --output")
        if self.holds_run():
            if not (resume or overwrite):
                raise CheckpointError(
                    f"{self.directory}: already holds a run; continue it with --resume, replace it with --overwrite, "
                    "or choose another folder with --output"
                )
            if overwrite and (foreign := self._foreign()):
                raise CheckpointError(
                    f"{self.directory}: has files that no run wrote: {listed(foreign)}; move them, then --overwrite"
                )
        elif self.directory.is_dir() and any(self.directory.iterdir()):
            asked = (
                "--overwrite replaces runs alone, and this is none" if overwrite else "is not empty, and holds no run"
            )
            raise CheckpointError(f"{self.directory}: {asked}; choose another folder with --output")

    def start(self, recipe: Recipe, about: Mapping[str, Any]) -> None:
        """Makes the folder for a new run.

        Raises:
            CheckpointError: it already holds a run, or something else.
        """
        self.check_free()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.write_recipe(recipe)
        write_json(self.directory / _RUN, about)

    def holds_run(self) -> bool:
        """Whether there is a run here, and not just a file of that name."""
        file = self.directory / _RUN
        try:
            return "backbone_sha256" in json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except (ValueError, TypeError):  # a run's, but damaged
            return (self.directory / _RECIPE).is_file()

    def _foreign(self) -> list[str]:
        """Names of what is here and no run wrote."""
        return [path.name for path in sorted(self.directory.iterdir()) if path not in self._written()]

    def _written(self) -> set[Path]:
        """What a run wrote, or left unfinished."""
        paths = set()
        for name in _WRITTEN:
            paths |= {self.directory / name, self.directory / f"{name}{REPLACED}"}
            paths |= set(self.directory.glob(f"{name}*{UNFINISHED}"))
        return paths

    def clear(self) -> None:
        """Removes what a run wrote, and nothing else."""
        if not self.holds_run():
            return
        for path in self._written():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    def recipe(self) -> Recipe:
        """The recipe that the run was started with.

        Raises:
            CheckpointError: there is none: this is not a run's folder.
        """
        file = self.directory / _RECIPE
        if not file.is_file():
            raise CheckpointError(f"{self.directory}: has no {_RECIPE}; give the folder of a run")
        return load_recipe(file)

    def list_skipped(self, lines: Sequence[str]) -> None:
        write_text(self.directory / _SKIPPED, "".join(f"{line}\n" for line in lines))

    def save_start(self, head: Variables) -> None:
        """Keeps the head before fine-tuning; the backbone before it is the pretrained one."""
        from safetensors.numpy import save_file

        arrays = {path: np.asarray(leaf, order="C") for path, leaf in flatten(head).items()}
        with written_atomically(self._start) as file:
            save_file(arrays, file)

    def load_start(self) -> dict[str, Any]:
        """What :meth:`save_start` kept.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return unflatten(load_file(self._start))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self._start}: cannot be read: {first_line(error)}") from None

    def figure(self, name: str) -> Path:
        return self.figures / f"{name}.png"

    def log(self, record: Mapping[str, Any]) -> None:
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json_text(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Everything that was logged.

        Raises:
            CheckpointError: the log is missing or damaged.
        """
        try:
            return [json.loads(line) for line in self._metrics.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._metrics}: cannot be read: {error}") from None

    def cut_log(self, lines: int) -> None:
        """Forgets what was logged after the state that a resumed run starts from."""
        if self._metrics.is_file():
            kept = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
            write_text(self._metrics, "".join(kept))

    def log_lines(self) -> int:
        return len(self._metrics.read_text(encoding="utf-8").splitlines()) if self._metrics.is_file() else 0

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.directory / _SUMMARY, summary)

    def summary(self) -> dict[str, Any] | None:
        """Of a finished run; None while it is not."""
        summary = self._read(_SUMMARY) if (self.directory / _SUMMARY).is_file() else None
        return summary if summary is not None and summary.get("status") == FINISHED else None

    def forget_summary(self) -> None:
        """The run is no longer finished."""
        (self.directory / _SUMMARY).unlink(missing_ok=True)

    def write_recipe(self, recipe: Recipe) -> None:
        write_text(self.directory / _RECIPE, dump_recipe(recipe))

    def add_to_history(self, record: Mapping[str, Any]) -> None:
        """Adds to ``run.json`` when and with what the run went on."""
        about = self.about()
        write_json(self.directory / _RUN, {**about, "history": [*about.get("history", ()), record]})

    def weights_sha256(self) -> str | None:
        """Of the saved model; None where there is none."""
        return self._read(f"{_MODEL}/model.json").get("weights_sha256") if self.model.is_dir() else None

    def about(self) -> dict[str, Any]:
        """With what the run was made, as :func:`about_run` said at its start."""
        return self._read(_RUN)

    def class_names(self) -> tuple[str, ...]:
        """Those of the saved model."""
        return tuple(self._read(f"{_MODEL}/model.json")["class_names"])

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.directory / name).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.directory / name}: damaged: {error}; start anew with --overwrite") from None


def is_run_or_bundle(directory: Path) -> bool:
    """Whether a folder holds a run, finished or not, or is a model bundle."""
    return any((directory / name).is_file() for name in (_RUN, "model.json", f"{_MODEL}/model.json"))


def about_run(recipe: Recipe, backbone_sha256: str, data_sha256: str) -> dict[str, Any]:
    """What ``run.json`` says: with what the run was made."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": recipe.seed,
        "backbone_sha256": backbone_sha256,
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


def dotted(tree: Any, path: str = "") -> dict[str, Any]:
    """dotted key -> value of every leaf of nested dicts and lists."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in dotted(value, f"{path}.{key}" if path else str(key)).items()}
    return {path: tree}
