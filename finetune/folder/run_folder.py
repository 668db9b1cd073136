"""A run's folder: the only place that knows what its files are called."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.image_record import ImageRecord
from finetune.errors import CheckpointError, first_line, listed, on_one_line
from finetune.files import hash_bytes, hash_json, json_text, write_json, write_text, written_atomically
from finetune.folder import contents
from finetune.folder.contents import Contents
from finetune.folder.lock import FolderLock
from finetune.folder.metrics_log import MetricsLog
from finetune.folder.placement import create, mend, replace, why_fixed
from finetune.recipe import Recipe, load_recipe
from finetune.recipe.source import dump_recipe
from finetune.trees import Variables, flatten, hash_tree, unflatten

FINISHED = "finished"  # status of a run in its summary
_FORMAT = 1  # of a run's folder
_MARKER = "finetune_run"  # in run.json, with the format: what makes a folder a run's
_EARLIER_MARKER = "backbone_sha256"
_DIGEST = "sha256"  # of all else that a file says
_LOG_DIGEST = "log_sha256"
_RECIPE_DIGEST = "# sha256 of the lines below: "  # the first line, so that a cut file has it
_ALLOWED = {".lock", contents.STARTING}  # in a folder that counts as empty


class RunFolder:
    """The folder of one run.

    Attributes:
        directory: the folder itself.
        state: what it takes to resume, by Orbax.
        model: the bundle.
        figures: pictures.
        predictions: what each step says of the test images.
        report: the run as a page.
        metrics: everything that is measured, as it comes.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.state = self.directory / contents.STATE
        self.model = self.directory / contents.MODEL
        self.figures = self.directory / contents.FIGURES
        self.predictions = self.directory / contents.PREDICTIONS
        self.report = self.directory / contents.REPORT
        self.metrics = MetricsLog(self.directory / contents.METRICS)
        self._start = self.directory / contents.START
        self._run = self.directory / contents.RUN
        self._lock: FolderLock | None = None
        self._identity: tuple[int, int] | None = None

    @contextmanager
    def reserve(
        self, doing: str, *, resume: bool = False, overwrite: bool = False, say: Callable[[str], None] = lambda _: None
    ) -> Iterator[None]:
        """While entered, the folder is this process's alone. What a killed process left there is put in order first.

        Args:
            doing: what other processes are told, in a word.
            say: told what was put in order.

        Raises:
            CheckpointError: it cannot be used, another process uses it, or at the end it is no longer there.
        """
        self._check_place()
        with FolderLock(self.directory, doing, say) as self._lock:
            mend(self.directory, say)
            self.check_free(resume=resume, overwrite=overwrite)
            if resume and self.holds_run():
                Contents(self.directory).remove_unfinished()
                self._identity = _identify(self.directory)
            try:
                yield
            except Exception:
                self.check_ours()  # says more than what came of it
                raise
            self.check_ours()

    def unlock(self) -> None:
        """For a process that ends without leaving :meth:`reserve`."""
        if self._lock is not None:
            self._lock.release()

    def check_ours(self) -> None:
        """While a run goes on.

        Raises:
            CheckpointError: the folder is gone, or another process has taken it over.
        """
        if self._identity is not None and _identify(self.directory) != self._identity:
            raise CheckpointError(
                f"{self.directory}: is gone: it was removed, moved or unmounted during the run, which ends here; "
                "if it was moved, bring it back, then continue with --resume"
            )
        if self._lock is not None:
            self._lock.check()

    def check_free(self, *, resume: bool = False, overwrite: bool = False, go_on: str = "--resume") -> None:
        """Before anything is loaded or written.

        Args:
            go_on: what continues a run that is here.

        Raises:
            CheckpointError: a run cannot be written here: there is a run already, or something else.
        """
        self._check_place()
        if self.holds_run():
            if not (resume or overwrite):
                raise CheckpointError(
                    f"{self.directory}: already holds a run; continue it with {go_on}, replace it with --overwrite, "
                    "or choose another folder with --output"
                )
            if links := Contents(self.directory).links():
                raise CheckpointError(
                    f"{self.directory}: has links where a run writes: {listed(links)}; replace them by what they name"
                )
            if overwrite:
                self._check_replaceable()
        elif self.directory.is_dir() and any(path.name not in _ALLOWED for path in self.directory.iterdir()):
            asked = (
                "--overwrite replaces runs alone, and this is none" if overwrite else "is not empty, and holds no run"
            )
            raise CheckpointError(f"{self.directory}: {asked}; choose another folder with --output")

    def _check_place(self) -> None:
        """Raises:
        CheckpointError: a folder cannot be here, or cannot be written to.
        """
        if self.directory.is_symlink():
            raise CheckpointError(f"{self.directory}: a link, and runs do not write through links; give what it names")
        for path in (self.directory, *self.directory.parents):
            if path.exists() and not path.is_dir():
                raise CheckpointError(f"{path}: the output is a folder, and a file has that name")
        existing = next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise CheckpointError(f"{existing}: cannot be written to; choose another folder with --output")

    def _check_replaceable(self) -> None:
        """Raises:
        CheckpointError: the run cannot be moved aside, or not removed without files that are no run's.
        """
        if foreign := Contents(self.directory).foreign():
            raise CheckpointError(
                f"{self.directory}: has files that no run wrote: {listed(foreign)}; move them, then --overwrite"
            )
        if reason := why_fixed(self.directory):
            raise CheckpointError(
                f"{self.directory}: {reason}: it cannot be moved aside to --overwrite it; remove the run by hand, or "
                "choose another folder with --output"
            )

    def start(
        self,
        recipe: Recipe,
        about: Mapping[str, Any],
        skipped: Sequence[str] = (),
        images: ImageRecord | None = None,
        *,
        overwrite: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Makes the folder for a new run. A kill at any moment leaves nothing, the earlier run or the new one.

        Args:
            about: for run.json.
            skipped: lines about images that are left out.
            images: those of the run.
            overwrite: in the place of an earlier run.

        Raises:
            CheckpointError: it already holds a run, or something else.
        """
        self.check_free(overwrite=overwrite)
        files: dict[str, str | bytes] = {contents.RECIPE: _describe_recipe(recipe)}
        if skipped:
            files[contents.SKIPPED] = "".join(f"{on_one_line(line)}\n" for line in skipped)
        if images is not None:
            files[contents.IMAGES] = images.to_bytes()
        files[contents.RUN] = _describe_run(about)
        if self.holds_run():
            replace(self.directory, files, say)
        else:
            create(self.directory, files)
        self._identity = _identify(self.directory)

    def holds_run(self) -> bool:
        """Whether there is a run here, and not just a file of that name.

        Raises:
            CheckpointError: there is such a file, and it is too damaged to tell.
        """
        if not self._run.is_file():
            return False
        text = self._run.read_bytes()
        try:
            about = json.loads(text)
        except (ValueError, RecursionError) as error:
            if any(marker.encode() in text for marker in (_MARKER, _EARLIER_MARKER)):
                return True  # a run's, but damaged
            raise CheckpointError(
                f"{self._run}: not JSON: {first_line(error)}; if it was a run's, restore it from a copy; otherwise "
                "choose another folder with --output"
            ) from None
        return isinstance(about, dict) and (_MARKER in about or _EARLIER_MARKER in about)

    def recipe(self) -> Recipe:
        """The recipe that the run was started with.

        Raises:
            CheckpointError: there is none: this is not a run's folder. Or it is damaged.
        """
        file = self.directory / contents.RECIPE
        if not file.is_file():
            raise CheckpointError(f"{self.directory}: has no {contents.RECIPE}; give the folder of a run")
        first, _, text = file.read_bytes().partition(b"\n")
        if first.startswith(_RECIPE_DIGEST.encode()) and first.decode(errors="replace").split()[-1] != hash_bytes(text):
            raise CheckpointError(f"{file}: damaged: it is not what the run wrote; restore it from a copy")
        return load_recipe(file)

    def save_start(self, head: Variables) -> None:
        """Keeps the head before fine-tuning; the backbone before it is the pretrained one."""
        from safetensors.numpy import save_file

        self.check_ours()
        arrays = {path: np.asarray(leaf, order="C") for path, leaf in flatten(head).items()}
        with written_atomically(self._start) as file:
            save_file(arrays, file, metadata={_DIGEST: hash_tree(arrays)})

    def load_start(self) -> dict[str, Any]:
        """What :meth:`save_start` kept.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._start, framework="np") as file:
                digest = (file.metadata() or {}).get(_DIGEST)
                names = list(file.keys())
                arrays = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self._start}: cannot be read: {first_line(error)}") from None
        if digest != hash_tree(arrays):
            raise CheckpointError(f"{self._start}: damaged: it is not what the run wrote")
        return unflatten(arrays)

    def figure(self, name: str) -> Path:
        self.check_ours()
        return self.figures / f"{name}.png"

    def log(self, record: Mapping[str, Any]) -> None:
        self.check_ours()
        self.metrics.append(record)

    def records(self) -> list[dict[str, Any]]:
        """Everything that was logged.

        Raises:
            CheckpointError: the log is missing or damaged.
        """
        return self.metrics.records((self._read_summary() or {}).get(_LOG_DIGEST))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes it with a digest over all that it says, and one of the log."""
        self.check_ours()
        described = json.loads(json_text({**summary, _LOG_DIGEST: self.metrics.extent()[1]}))
        write_json(self.directory / contents.SUMMARY, {**described, _DIGEST: hash_json(described)})

    def summary(self) -> dict[str, Any] | None:
        """Of a finished run; None while it is not.

        Raises:
            CheckpointError: it is damaged.
        """
        summary = self._read_summary()
        return summary and {key: value for key, value in summary.items() if key != _LOG_DIGEST}

    def _read_summary(self) -> dict[str, Any] | None:
        file = self.directory / contents.SUMMARY
        if not file.is_file():
            return None
        summary = self._read(contents.SUMMARY)
        if summary.keys() & {_DIGEST, _LOG_DIGEST} and summary.pop(_DIGEST, None) != hash_json(summary):
            raise CheckpointError(f"{file}: damaged: it is not what the run wrote; remove it, then --resume")
        return summary if summary.get("status") == FINISHED else None

    def forget_summary(self) -> None:
        """The run is no longer finished."""
        (self.directory / contents.SUMMARY).unlink(missing_ok=True)

    def tracked(self) -> dict[str, Any]:
        """What :meth:`write_tracked` kept; nothing where that is missing or damaged: trackers begin anew."""
        if not (self.directory / contents.TRACKERS).is_file():
            return {}
        try:
            kept = self._read(contents.TRACKERS)
        except CheckpointError:
            return {}
        return kept if kept.pop(_DIGEST, None) == hash_json(kept) else {}

    def write_tracked(self, trackers: Mapping[str, Any]) -> None:
        """Keeps how each tracker goes on."""
        self.check_ours()
        write_json(self.directory / contents.TRACKERS, {**trackers, _DIGEST: hash_json(trackers)})

    def write_recipe(self, recipe: Recipe) -> None:
        write_text(self.directory / contents.RECIPE, _describe_recipe(recipe))

    def add_to_history(self, record: Mapping[str, Any]) -> None:
        """Adds to ``run.json`` when and with what the run went on."""
        about = self.about()
        write_text(self._run, _describe_run({**about, "history": [*about.get("history", ()), record]}))

    def weights_sha256(self) -> str | None:
        """Of the saved model; None where there is none."""
        return self._read(f"{contents.MODEL}/model.json").get("weights_sha256") if self.model.is_dir() else None

    def about(self) -> dict[str, Any]:
        """With what the run was made, as :func:`about_run` said at its start.

        Raises:
            CheckpointError: run.json is missing, damaged or of a newer version.
        """
        about = self._read(contents.RUN)
        digested = about.keys() & {_MARKER, _DIGEST}  # those of an earlier version have neither
        if about.pop(_MARKER, _FORMAT) != _FORMAT:
            raise CheckpointError(f"{self._run}: written by another version, which this one cannot read; use that one")
        if digested and about.pop(_DIGEST, None) != hash_json({_MARKER: _FORMAT, **about}):
            raise CheckpointError(
                f"{self._run}: damaged: it is not what the run wrote; restore it from a copy, or start anew with "
                "--overwrite"
            )
        return about

    @property
    def bundle(self) -> Path:
        """The saved model, also where a kill has left it beside its place."""
        from finetune.checkpoint import find_bundle

        return find_bundle(self.model) or self.model

    def class_names(self) -> tuple[str, ...]:
        """Those of the saved model."""
        file = self.bundle / "model.json"
        return tuple(self._read(str(file.relative_to(self.directory)))["class_names"])

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.directory / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise CheckpointError(f"{self.directory / name}: is missing; give the folder of a run") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{self.directory / name}: damaged: {error}; start anew with --overwrite") from None


def _describe_run(about: Mapping[str, Any]) -> str:
    """The text of run.json."""
    described = {_MARKER: _FORMAT, **{key: value for key, value in about.items() if key not in (_MARKER, _DIGEST)}}
    return json_text({**described, _DIGEST: hash_json(described)}, indent=1) + "\n"


def _describe_recipe(recipe: Recipe) -> str:
    """The text of recipe.yaml."""
    text = dump_recipe(recipe)
    return f"{_RECIPE_DIGEST}{hash_bytes(text.encode())}\n{text}"


def is_run_or_bundle(directory: Path) -> bool:
    """Whether a folder holds a run, finished or not, or is a model bundle."""
    from finetune.checkpoint import find_bundle

    return (directory / contents.RUN).is_file() or find_bundle(directory) is not None


def _identify(directory: Path) -> tuple[int, int] | None:
    """Device and number of a folder, which tell it from another of its name; None where there is none."""
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def dotted(tree: Any, path: str = "") -> dict[str, Any]:
    """dotted key -> value of every leaf of nested dicts and lists."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in dotted(value, f"{path}.{key}" if path else str(key)).items()}
    return {path: tree}
