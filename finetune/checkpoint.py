"""The saved states of a run, by Orbax: what it takes to go on exactly where it stopped.

Every array and the progress record are under digests that are checked before anything of a state is used: a flipped bit
is an error, and never other weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from finetune.distributed.sharding import Placement
from finetune.errors import CheckpointError, first_line
from finetune.files import hash_json, replaced, require_space
from finetune.foreign_errors import advice_for
from finetune.trees import fetch, hash_array


class RunCheckpoints:
    """The folder ``state/`` of a run: one folder for each saved step, written atomically.

    Each holds ``variables`` (everything that the run changes, as it is measured; frozen weights are never written),
    ``state`` (what else resuming needs, such as the optimizer's), ``progress`` (JSON: stage, results, loader position)
    and ``manifest``, their digests. They are hashed and written by a thread of its own, one at a time.
    """

    def __init__(
        self,
        directory: Path,
        *,
        read_only: bool = False,
        keep_last: int = 2,
        keep_best: int = 1,
        saved: Callable[[], None] | None = None,
        placement: Placement | None = None,
    ) -> None:
        """
        Args:
            keep_last: newest steps that are kept; one alone leaves nothing to go back to should it be damaged.
            keep_best: steps with the best validation scores that are kept.
            saved: is called after each step that was written, by the thread that wrote it.
            placement: of the arrays that are restored; by default on this process's first device.
        """
        self._placement = placement
        self.directory = directory.absolute()
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep_last),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["score"], n=keep_best, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            read_only=read_only,
            create=False,
            enable_async_checkpointing=False,  # the writer is the thread beside training
            save_interval_steps=0 if read_only else 1,  # Orbax warns where a reader has any other
            multiprocessing_options=this_process_alone(),
        )
        alone: dict[str, Any] = {"multiprocessing_options": this_process_alone()}
        handlers = {
            # compressing weights saves a tenth of their size and takes as long as all else
            "variables": ocp.PyTreeCheckpointHandler(use_compression=False, **alone),
            "state": ocp.PyTreeCheckpointHandler(use_compression=False, **alone),
            "progress": ocp.JsonCheckpointHandler(**alone),
            "manifest": ocp.JsonCheckpointHandler(**alone),
        }
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self._saved_one = saved
        self._writer = ThreadPoolExecutor(1, "saving")
        self._saving: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown()
        try:
            if error is None:
                self.wait()
        finally:
            self._manager.close()

    @property
    def busy(self) -> bool:
        """Whether a step is being written."""
        return self._saving is not None and not self._saving.done()

    def steps(self) -> list[int]:
        self.wait()
        return sorted(self._manager.all_steps())

    def save(self, step: int, variables: Any, state: Any, progress: dict[str, Any], score: float | None = None) -> None:
        """Writes a step atomically in the background, from a copy: the arrays may be donated at once.

        Where the step before is still being written, it waits for that.

        Args:
            step: one that is saved already is replaced.
            score: of validation; the steps with the highest are kept.

        Raises:
            CheckpointError: this step, or the one before, cannot be written, for example because the disk is full.
        """
        self.wait()
        if not self.directory.is_dir():  # Orbax would make it again
            raise CheckpointError(f"{self.directory}: is gone: it was removed, moved or unmounted during the run")
        require_space(self.directory, sum(leaf.nbytes for leaf in jax.tree.leaves((variables, state))))
        metrics = None if score is None else {"score": score}
        variables, state = _copy_to_host((variables, state))
        self._saving = self._writer.submit(self._write, step, variables, state, progress, metrics)

    def _write(self, step: int, variables: Any, state: Any, progress: dict[str, Any], metrics: Any) -> None:
        items = {
            "variables": ocp.args.PyTreeSave(variables),
            "progress": ocp.args.JsonSave(progress),
            "manifest": ocp.args.JsonSave(_make_manifest(variables, state, progress)),
        }
        if state is not None:
            items["state"] = ocp.args.PyTreeSave(state)
        if step in self._manager.all_steps():
            self._manager.delete(step)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        if self._saved_one is not None:
            self._saved_one()

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            CheckpointError: it cannot be written.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise self._unwritten(error) from None

    def progress(self, step: int) -> dict[str, Any]:
        progress = self._restore(step, progress=ocp.args.JsonRestore())["progress"]
        if hash_json(progress) != self._manifest(step)["progress"]:
            raise self._damaged(step, "its progress record is not what was saved")
        return progress

    def variables(self, step: int) -> dict[str, Any]:
        """The saved variables."""
        return self._arrays(step, "variables", self._saved(step)["variables"])

    def state(self, step: int, like: Any) -> Any:
        """What was saved as ``state``, in the structure of a tree."""
        return self._arrays(step, "state", like)

    def verify(self, step: int) -> None:
        """Reads all of a step.

        Raises:
            CheckpointError: something of it is not what was saved.
        """
        self.progress(step)
        saved = self._saved(step)
        for item in self._manifest(step).keys() & {"variables", "state"}:
            self._arrays(step, item, saved[item])

    def delete(self, step: int) -> None:
        self.wait()
        self._manager.delete(step)

    def _saved(self, step: int) -> Any:
        """The shapes of what was saved, by item."""
        self.wait()
        try:
            return self._manager.item_metadata(step)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise self._damaged(step, first_line(error)) from None

    def _arrays(self, step: int, item: str, like: Any) -> Any:
        if jax.process_count() > 1:  # the others are sent it
            places = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), like)
        else:
            like = shapes_in_place(like, self._placement)
            places = ocp.checkpoint_utils.construct_restore_args(like)
        tree = self._restore(step, **{item: ocp.args.PyTreeRestore(like, restore_args=places)})[item]
        if Counter(_hash_arrays(tree)) != Counter(self._manifest(step).get(item, ())):
            raise self._damaged(step, f"its {item} are not what was saved")
        return tree

    def _manifest(self, step: int) -> dict[str, Any]:
        manifest = self._restore(step, manifest=ocp.args.JsonRestore())["manifest"]
        if not isinstance(manifest, dict) or manifest.pop("sha256", None) != hash_json(manifest):
            raise self._damaged(step, "its manifest is not what was saved")
        return manifest

    def _restore(self, step: int, **items: Any) -> Any:
        self.wait()
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many kinds; all mean that the files are not whole
            raise self._damaged(step, first_line(error)) from None

    def _unwritten(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.directory}: cannot save: {first_line(error)}; earlier states are complete: "
            f"{advice_for(error)}, then continue with --resume"
        )

    def _damaged(self, step: int, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.directory / str(step)}: cannot be restored: {reason}")


def _copy_to_host(tree: Any) -> Any:
    """NumPy arrays that no train step will overwrite."""
    on_device = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    for leaf in on_device:
        leaf.copy_to_host_async()  # all at once
    in_place = jax.default_backend() == "cpu"  # NumPy would read the array where it is
    return jax.tree.map(lambda leaf: np.array(leaf) if in_place else fetch(leaf), tree)


def _make_manifest(variables: Any, state: Any, progress: dict[str, Any]) -> dict[str, Any]:
    manifest = {"progress": hash_json(progress), "variables": _hash_arrays(variables)}
    if state is not None:
        manifest["state"] = _hash_arrays(state)
    return {**manifest, "sha256": hash_json(manifest)}


def _hash_arrays(tree: Any) -> list[str]:
    """Of every array, in no order that a restored tree would have to keep."""
    return [hash_array(leaf) for leaf in jax.tree.leaves(tree)]


def this_process_alone() -> ocp.options.MultiprocessingOptions:
    """For Orbax, which otherwise waits for all other processes of a run to do the same."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )


def find_bundle(folder: Path) -> Path | None:
    """The model bundle that a folder is, or that a run's folder has; None where there is none.

    Where a kill came while the run's model was replaced, it is the earlier one.
    """
    homes = [folder, folder / "model", replaced(folder / "model")]
    if folder.name == "model" and (folder.parent / "run.json").is_file():
        homes.append(replaced(folder))
    return next((home for home in homes if (home / "model.json").is_file()), None)


def shapes_in_place(tree: Any, placement: Placement | None = None) -> Any:
    """The tree as shapes, where its arrays are to be restored, whatever machine wrote them.

    Args:
        placement: by default, and where it has one device, on this process's first device.
    """
    if placement is not None and not placement.is_trivial:
        return placement.shapes(tree)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)
