"""Whether a run goes on with a recipe that is not quite the one it was started with, and with what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from finetune.data.image_record import ImageRecord
from finetune.errors import CheckpointError
from finetune.evaluation.metrics import score_of_value
from finetune.folder.about import about_program
from finetune.folder.run_folder import RunFolder, dotted
from finetune.optim.optimizer import learning_rates
from finetune.recipe import Recipe, TrainStage
from finetune.run.resume import Kept, RunProgress
from finetune.run.setup import RunSetup, stage_length

_HARMLESS = re.compile(
    r"name|data\.num_workers|evaluate\.batch_size|save\..+|data\.source|mesh(\..+)?|trackers\..+"
)  # data are known by content
_LENGTH = re.compile(r"stages\.(\d+)\.(epochs|steps|examples)")
_SHOWN = 10  # differences


@dataclass(frozen=True)
class Continuation:
    """How a run goes on.

    Attributes:
        lines: what to say.
        before: the recipe until now.
        longer: stages that are longer than they were, by index.
    """

    lines: tuple[str, ...]
    before: Recipe
    longer: tuple[int, ...] = ()


def check_continuation(folder: RunFolder, setup: RunSetup, extend: bool) -> Continuation:
    """Before a run goes on.

    Args:
        extend: stages may be longer.

    Raises:
        CheckpointError: it was started with another recipe, other pretrained weights or other images.
    """
    before, about = folder.recipe(), folder.about()
    lines = _other_program(about)
    longer = []
    refused = []
    for key, (old, new) in _differences(before, setup.recipe).items():
        length = _LENGTH.fullmatch(key)
        shown = f"{key}: {old!r} -> {new!r}"
        if _HARMLESS.fullmatch(key):
            lines.append(f"resuming with another {shown}")
        elif extend and length and isinstance(old, int) and isinstance(new, int):
            if new < old:
                raise CheckpointError(f"{folder.directory}: --extend: {shown}: a stage can only be longer than it was")
            longer.append(int(length[1]))
        else:
            refused.append(shown)
    if refused:
        raise CheckpointError(_refusal(folder, refused))
    _check_identity(folder, about, setup)
    if extend and not longer:
        raise CheckpointError(
            f"{folder.directory}: --extend: no stage is longer than it was; give more, such as stages.0.epochs=20"
        )
    return Continuation(tuple(lines), before, tuple(longer))


def _differences(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """dotted key -> both values, None where there is none."""
    saved, current = dotted(before.model_dump(mode="json")), dotted(now.model_dump(mode="json"))
    keys = [*saved, *(key for key in current if key not in saved)]
    return {key: (saved.get(key), current.get(key)) for key in keys if saved.get(key) != current.get(key)}


def _refusal(folder: RunFolder, refused: list[str]) -> str:
    shown = refused[:_SHOWN]
    if len(refused) > len(shown):
        shown.append(f"and {len(refused) - len(shown)} more")
    lengths = [line for line in refused if _LENGTH.match(line)]
    more = "; --extend goes on with longer stages" if len(lengths) == len(refused) else ""
    listed = "".join(f"\n  {line}" for line in shown)
    return (
        f"{folder.directory}: cannot resume: the run was started with another recipe: give the same, or another "
        f"--output{more}{listed}"
    )


def _check_identity(folder: RunFolder, about: Mapping[str, Any], setup: RunSetup) -> None:
    if about.get("backbone_sha256") != setup.backbone_sha256:
        raise CheckpointError(
            f"{folder.directory}: cannot resume: the backbone has other weights than at the start; "
            "bring those back, or start anew with --overwrite"
        )
    before = ImageRecord.load(folder.directory) or ImageRecord({}, {})
    before = replace(before, sha256={**before.sha256, "data.source": about.get("data_sha256", "")})
    if changes := setup.images.changes_since(before):
        raise CheckpointError(
            f"{folder.directory}: cannot resume: {changes}; bring those back, or start anew with --overwrite"
        )


def _other_program(about: Mapping[str, Any]) -> list[str]:
    """What may make the last bits differ."""
    now = about_program()
    changed = []
    if (before := about.get("devices")) and before != now["devices"]:
        changed.append(f"{_count(before)} at the start, {_count(now['devices'])} now")
    versions = about.get("versions", {})
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        if name in versions and versions[name] != now["versions"][name]:
            changed.append(f"{name} {versions[name]} at the start, {now['versions'][name]} now")
    return [f"{'; '.join(changed)}: the last bits of the result may differ"] if changed else []


def _count(devices: list[str]) -> str:
    kinds = sorted(set(devices))
    return ", ".join(f"{devices.count(kind)} x {kind}" for kind in kinds)


def record_continuation(folder: RunFolder, setup: RunSetup, continuation: Continuation) -> None:
    """The folder says from now on what its run goes on with."""
    now = {**about_program(), "resumed": datetime.now(UTC).isoformat(timespec="seconds")}
    changed = {key: list(values) for key, values in _differences(continuation.before, setup.recipe).items()}
    folder.add_to_history({**now, "changed": changed})
    folder.write_recipe(setup.recipe)


def describe_extension(setup: RunSetup, before: Recipe, index: int, step: int) -> str:
    """One line about a stage that is longer than it was.

    Args:
        step: of the stage, that it goes on from.
    """
    stage, old = setup.recipe.stages[index], before.stages[index]
    assert isinstance(stage, TrainStage)
    assert isinstance(old, TrainStage)
    lengths = stage_length(old, setup.splits.train), setup.lengths[index]
    rates = [learning_rates(part.partitions, length) for part, length in zip((old, stage), lengths, strict=True)]
    moved = ", ".join(
        f"{name} {float(rates[0][name](step)):.1e} -> {float(rates[1][name](step)):.1e}" for name in rates[1]
    )
    return (
        f"{stage.name}: {lengths[0].total_steps} -> {lengths[1].total_steps} steps: the schedules are made anew; "
        f"learning rate at step {step}: {moved}"
    )


def find_state_to_extend(progress: Mapping[int, RunProgress], setup: RunSetup, longer: tuple[int, ...]) -> int:
    """The saved step that a run with longer stages goes on from.

    Args:
        progress: of each saved step.

    Raises:
        CheckpointError: a stage is longer that others have been trained from, or nothing within it is saved.
    """
    newest = max(progress)
    stage = progress[newest].stage
    names = [stage.name for stage in setup.recipe.stages]
    for index in longer:
        if index < stage:
            raise CheckpointError(
                f"--extend: stages.{index}: {names[stage]!r} has been trained from {names[index]!r}: only the last "
                "stage that has begun can be longer; start anew with --overwrite"
            )
    if stage not in longer or progress[newest].point is not None:
        return newest
    within = [step for step, saved in progress.items() if saved.stage == stage and saved.point is not None]
    if not within:
        raise CheckpointError(
            f"--extend: {names[stage]!r} has ended, and no state within it is kept; start anew with --overwrite, "
            "and with save.keep_last=3"
        )
    return max(within)


def kept_model(folder: RunFolder, progress: RunProgress) -> Kept | None:
    """The model in a run's folder where a stage is trained further; None where nothing says how good it is."""
    summary = folder.summary()
    if summary is None:
        kept = progress.kept
        return kept if kept is not None and folder.weights_sha256() == kept.weights_sha256 else None
    kept = summary["kept"]
    value = kept["validation"]
    score = None if value is None else score_of_value(kept["metric"], value)
    return Kept(kept["stage"], score, summary["weights_sha256"], summary["calibration"])
