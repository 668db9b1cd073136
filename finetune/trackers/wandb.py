"""Weights & Biases: online, or offline files to be synced later."""

from __future__ import annotations

import os
from collections.abc import Mapping

from finetune.errors import RecipeError
from finetune.recipe.trackers import WandbConfig
from finetune.trackers.tracker import Status, TrackedRun

_EXIT_CODES = {"finished": 0, "interrupted": 255, "diverged": 3, "failed": 1}  # 255 is what it takes for a kill


class WandbTracker:
    """Follows a run by wandb's own process, which sends or writes what it gets."""

    name = "wandb"

    def __init__(self, config: WandbConfig) -> None:
        """Raises:
        RecipeError: it would send to the server, and there is no key to do so.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing goes where the user has not said
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        self._config = config
        mode = config.mode or os.environ.get("WANDB_MODE") or "online"
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RecipeError(
                "trackers: wandb is online and has no key: log in with `wandb login`, set WANDB_API_KEY, or write "
                "{name: wandb, mode: offline}"
            )

    def start(self, run: TrackedRun) -> str:
        import wandb

        config = self._config
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.run_name or run.name,
            group=config.group,
            tags=config.tags or None,
            config={key.replace(".", "/"): value for key, value in run.config.items()},  # dots would nest
            id=run.id,
            resume=None if run.id is None else "allow",
            mode=config.mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
        # an axis of our own: wandb's holds a row back until the next step, and takes no step twice
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({**scalars, "step": step})

    def finish(self, status: Status) -> None:
        self._run.finish(exit_code=_EXIT_CODES[status])
