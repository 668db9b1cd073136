"""Transfer learning and fine-tuning of pretrained vision models in JAX and Flax.

The public names are loaded on first use, so that importing the package costs neither jax nor transformers.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.checkpoint import RunCheckpoints as RunCheckpoints
    from finetune.distributed.membership import join_processes as join_processes
    from finetune.distributed.mesh import make_mesh as make_mesh
    from finetune.distributed.sharding import Placement as Placement
    from finetune.errors import FinetuneError as FinetuneError
    from finetune.evaluation.evaluate_run import evaluate_run as evaluate_run
    from finetune.export.bundle import load_bundle as load_bundle
    from finetune.export.bundle import save_bundle as save_bundle
    from finetune.export.push import PushedBundle as PushedBundle
    from finetune.export.push import push_to_hub as push_to_hub
    from finetune.images.spec import ImageSpec as ImageSpec
    from finetune.inference.explain import Explainer as Explainer
    from finetune.inference.predictor import Prediction as Prediction
    from finetune.inference.predictor import Predictor as Predictor
    from finetune.inference.predictor import restore as restore
    from finetune.models.backbone import Backbone as Backbone
    from finetune.models.backbone import Clip as Clip
    from finetune.models.backbone import load_backbone as load_backbone
    from finetune.models.backbone import load_clip as load_clip
    from finetune.models.classifier import Classifier as Classifier
    from finetune.models.classifier import build_classifier as build_classifier
    from finetune.models.depth import DepthOrder as DepthOrder
    from finetune.models.layers.convolution import BatchNorm as BatchNorm
    from finetune.models.surgery import TransferReport as TransferReport
    from finetune.models.surgery import extract_submodule as extract_submodule
    from finetune.models.surgery import transplant as transplant
    from finetune.models.zero_shot import zero_shot_head as zero_shot_head
    from finetune.optim.optimizer import build_optimizer as build_optimizer
    from finetune.optim.parameter_plan import ParameterPlan as ParameterPlan
    from finetune.optim.partitions import label_params as label_params
    from finetune.optim.schedules import StageLength as StageLength
    from finetune.recipe import LinearProbeStage as LinearProbeStage
    from finetune.recipe import Partition as Partition
    from finetune.recipe import Recipe as Recipe
    from finetune.recipe import TrainStage as TrainStage
    from finetune.recipe import load_recipe as load_recipe
    from finetune.recipe.schema import recipe_schema as recipe_schema
    from finetune.remote import push_to_url as push_to_url
    from finetune.report.bench import bench_recipe as bench_recipe
    from finetune.report.choose import ChosenRecipe as ChosenRecipe
    from finetune.report.choose import choose_recipe as choose_recipe
    from finetune.report.compare import compare_runs as compare_runs
    from finetune.report.doctor import diagnose_data as diagnose_data
    from finetune.report.dry_run import dry_run as dry_run
    from finetune.report.leaderboard import make_leaderboard as make_leaderboard
    from finetune.report.lr_find import find_learning_rate as find_learning_rate
    from finetune.report.plan import plan_recipe as plan_recipe
    from finetune.report.validate import validate_recipe as validate_recipe
    from finetune.run.result import RunResult as RunResult
    from finetune.run.run import run as run
    from finetune.run.soup import make_soup as make_soup
    from finetune.trackers.tracker import TrackedRun as TrackedRun
    from finetune.trackers.tracker import Tracker as Tracker
    from finetune.training.stage_trainer import StageTrainer as StageTrainer
    from finetune.training.state import TrainState as TrainState
    from finetune.trees import merge as merge

_HOME = {
    "Backbone": "models.backbone",
    "BatchNorm": "models.layers.convolution",
    "ChosenRecipe": "report.choose",
    "Classifier": "models.classifier",
    "Clip": "models.backbone",
    "DepthOrder": "models.depth",
    "Explainer": "inference.explain",
    "FinetuneError": "errors",
    "ImageSpec": "images.spec",
    "LinearProbeStage": "recipe",
    "ParameterPlan": "optim.parameter_plan",
    "Partition": "recipe",
    "Placement": "distributed.sharding",
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "PushedBundle": "export.push",
    "Recipe": "recipe",
    "RunCheckpoints": "checkpoint",
    "RunResult": "run.result",
    "StageLength": "optim.schedules",
    "StageTrainer": "training.stage_trainer",
    "TrackedRun": "trackers.tracker",
    "Tracker": "trackers.tracker",
    "TrainStage": "recipe",
    "TrainState": "training.state",
    "TransferReport": "models.surgery",
    "bench_recipe": "report.bench",
    "build_classifier": "models.classifier",
    "build_optimizer": "optim.optimizer",
    "choose_recipe": "report.choose",
    "compare_runs": "report.compare",
    "diagnose_data": "report.doctor",
    "dry_run": "report.dry_run",
    "evaluate_run": "evaluation.evaluate_run",
    "extract_submodule": "models.surgery",
    "find_learning_rate": "report.lr_find",
    "join_processes": "distributed.membership",
    "label_params": "optim.partitions",
    "load_backbone": "models.backbone",
    "load_bundle": "export.bundle",
    "load_clip": "models.backbone",
    "load_recipe": "recipe",
    "make_leaderboard": "report.leaderboard",
    "make_mesh": "distributed.mesh",
    "make_soup": "run.soup",
    "merge": "trees",
    "plan_recipe": "report.plan",
    "push_to_hub": "export.push",
    "push_to_url": "remote",
    "recipe_schema": "recipe.schema",
    "restore": "inference.predictor",
    "run": "run.run",
    "save_bundle": "export.bundle",
    "transplant": "models.surgery",
    "validate_recipe": "report.validate",
    "zero_shot_head": "models.zero_shot",
}

# transformers is used for its configurations and tokenizers alone; it would advise to install PyTorch for the rest.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# Others show their progress by tqdm, which asks for widgets in a notebook that has none.
warnings.filterwarnings("ignore", "IProgress not found")

__all__ = ["__version__", *sorted(_HOME)]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"finetune.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps ``finetune.run`` the function: Python would set that attribute to the subpackage of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
