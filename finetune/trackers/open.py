"""The trackers that a recipe names, with their packages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from finetune.errors import RecipeError
from finetune.recipe.trackers import MlflowConfig, TensorBoardConfig, TrackerConfig, TrackioConfig
from finetune.trackers.tracker import Tracker


def open_trackers(configs: Sequence[TrackerConfig]) -> list[Tracker]:
    """The trackers of a recipe. Nothing is started yet.

    Raises:
        RecipeError: a package is missing, or cannot be used as it is set up here.
    """
    for i, config in enumerate(configs):
        spec = find_spec(config.name)
        if spec is None or spec.origin is None:  # a folder of that name here, such as wandb's own, is no package
            raise RecipeError(
                f"trackers.{i}: {config.name} is not installed: pip install 'flax-finetune[{config.name}]', or leave "
                "the tracker out"
            )
    return [_open(config) for config in configs]


def _open(config: TrackerConfig) -> Tracker:
    if isinstance(config, TensorBoardConfig):
        from finetune.trackers.tensorboard import TensorBoardTracker

        return TensorBoardTracker()
    if isinstance(config, TrackioConfig):
        from finetune.trackers.trackio import TrackioTracker

        return TrackioTracker(config)
    if isinstance(config, MlflowConfig):
        from finetune.trackers.mlflow import MlflowTracker

        return MlflowTracker(config)
    from finetune.trackers.wandb import WandbTracker

    return WandbTracker(config)
