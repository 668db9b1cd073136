"""Recipes: what to fine-tune, on what, and how."""

from finetune.recipe.backbone import BackboneConfig, HeadConfig, ImageConfig, ModuleConfig, PretrainedConfig
from finetune.recipe.data import Columns, DataConfig
from finetune.recipe.heads import HeadStage, LinearProbeStage
from finetune.recipe.optimization import Length, Loss, Optimizer, Schedule
from finetune.recipe.recipe import Recipe, find_recipe, load_recipe, read_data_config
from finetune.recipe.stages import FROZEN, FrozenCache, Lora, Partition, Stage, TrainStage

__all__ = [
    "FROZEN",
    "BackboneConfig",
    "Columns",
    "DataConfig",
    "FrozenCache",
    "HeadConfig",
    "HeadStage",
    "ImageConfig",
    "Length",
    "LinearProbeStage",
    "Lora",
    "Loss",
    "ModuleConfig",
    "Optimizer",
    "Partition",
    "PretrainedConfig",
    "Recipe",
    "Schedule",
    "Stage",
    "TrainStage",
    "find_recipe",
    "load_recipe",
    "read_data_config",
]
