"""Folders of runs without a run: each file has the name of a real one's, and little in it."""

import json
from functools import cache
from pathlib import Path

from paths import SMALL

from finetune.folder.run_folder import RunFolder
from finetune.recipe import Recipe, load_recipe

HEX = "0123456789abcdef" * 2
FILES = (  # of a real run, those that its start writes apart
    "metrics.jsonl",
    "summary.json",
    "predictions.parquet",
    "start.safetensors",
    "report.html",
    "trackers.json",
    "events/events.out.tfevents.1795918996.vm.5155.0",
    "figures/curves.png",
    "figures/finetune_batch.png",
    "state/7/_CHECKPOINT_METADATA",
    "state/7/progress/metadata",
    f"state/7/variables/d/{HEX}",
    f"state/7/variables/ocdbt.process_0/d/{HEX}",
    "state/9.orbax-checkpoint-tmp/variables/_sharding",
    "model/model.json",
    "model/weights/manifest.ocdbt",
    f"model/weights/ocdbt.process_0/d/{HEX}",
)


def start(folder: RunFolder, seed: int, *, overwrite: bool = False) -> None:
    """Starts a run that can be told by its seed."""
    folder.start(_recipe(seed), {"seed": seed, "backbone_sha256": "b"}, ["train: a.png: broken"], overwrite=overwrite)


@cache
def _recipe(seed: int) -> Recipe:
    return load_recipe(SMALL, [f"seed={seed}"])


def make_run(directory: Path, seed: int = 1) -> RunFolder:
    """What a finished run leaves."""
    folder = RunFolder(directory)
    start(folder, seed)
    for name in FILES:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps({"seed": seed, "status": "finished"}) + "\n")
    return folder


def tree(directory: Path) -> dict[str, bytes]:
    """Everything in a folder, by path."""
    return {
        path.relative_to(directory).as_posix(): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
    }
