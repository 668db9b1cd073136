"""Every public name, in groups, with its docstring by mkdocstrings."""

from __future__ import annotations

from pydantic import BaseModel

import finetune

GROUPS = {
    "Recipes and runs": (
        "load_recipe", "validate_recipe", "run", "RunResult", "evaluate_run", "compare_runs", "make_soup",
        "plan_recipe", "dry_run", "bench_recipe", "diagnose_data", "make_leaderboard", "recipe_schema", "Recipe",
        "TrainStage", "LinearProbeStage", "Partition", "Tracker", "TrackedRun",
    ),
    "Backbones and classifiers": (
        "load_backbone", "Backbone", "load_clip", "Clip", "build_classifier", "Classifier", "zero_shot_head",
        "extract_submodule", "transplant", "TransferReport", "merge", "ImageSpec", "BatchNorm", "DepthOrder",
    ),
    "Training": (
        "StageTrainer", "TrainState", "StageLength", "ParameterPlan", "label_params", "build_optimizer",
        "RunCheckpoints", "make_mesh", "Placement", "join_processes", "find_learning_rate",
    ),
    "Inference": (
        "restore", "Predictor", "Prediction", "Explainer", "save_bundle", "load_bundle", "push_to_hub", "PushedBundle",
        "push_to_url",
    ),
    "Errors": ("FinetuneError",),
}  # fmt: skip


def reference() -> str:
    """A section for each group; a name that is in none of them comes last, so that none is missing."""
    grouped = {name for names in GROUPS.values() for name in names}
    others = tuple(name for name in finetune.__all__ if name not in grouped and name != "__version__")
    sections = GROUPS | ({"Other": others} if others else {})
    return "\n\n".join(f"## {title}\n\n" + "\n\n".join(map(_entry, names)) for title, names in sections.items())


def _entry(name: str) -> str:
    """Names are loaded lazily, so that mkdocstrings has to be told where each is written."""
    value = getattr(finetune, name)
    options = ["heading_level: 3"]
    if isinstance(value, type) and issubclass(value, BaseModel):
        options.append("members: false")  # keys alone, which its docstring has
    return "\n      ".join([f"::: {value.__module__}.{name}\n    options:", *options])
