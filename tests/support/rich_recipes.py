"""Recipes that together use every part and option, as the documents that one would write."""

from __future__ import annotations

import copy
from typing import Any

FROZEN = {"match": ".*", "frozen": True}

OPTIMIZERS: dict[str, Any] = {
    "sgd": {"name": "sgd", "momentum": 0.8, "nesterov": True},
    "plain sgd": {"name": "sgd", "momentum": 0},
    "adam": {"name": "adam", "b1": 0.8, "b2": 0.99, "eps": 1e-7},
    "adamw": {"name": "adamw", "b1": 0.8, "b2": 0.99, "eps": 1e-7},
    "lion": {"name": "lion", "b1": 0.8, "b2": 0.98},
    "adafactor": {"name": "adafactor", "decay_rate": 0.7, "clip": 2.0},
    "lamb": {"name": "lamb", "b1": 0.8, "b2": 0.99, "eps": 1e-7},
    "lars": {"name": "lars", "momentum": 0.8, "trust": 0.01},
    "muon": {"name": "muon", "momentum": 0.9, "nesterov": False, "b1": 0.8, "b2": 0.99},
    "muon without momentum": {"name": "muon", "momentum": 0, "nesterov": False},
    "by name": "muon",
}
SCHEDULES: dict[str, Any] = {
    "constant": {"name": "constant", "warmup": {"epochs": 0.5}, "warmup_init_factor": 0},
    "cosine": {"name": "cosine", "warmup": 0.07, "end_factor": 0.1},
    "linear": {"name": "linear", "warmup": {"examples": 320}, "end_factor": 0.1},
    "step": {"name": "step", "milestones": [{"epochs": 1}, 0.7, {"steps": 40}], "decay_rate": 0.3},
    "exponential": {"name": "exponential", "transition": {"percent": 30}, "decay_rate": 0.5, "staircase": True},
    "one_cycle": {"name": "one_cycle", "warmup": 0.2, "init_factor": 0.1, "end_factor": 0.01},
    "cosine_restarts": {
        "name": "cosine_restarts",
        "cycle": {"epochs": 1},
        "cycle_mul": 1.5,
        "cycle_decay": 0.8,
        "end_factor": 0.1,
    },
    "by name": "one_cycle",
}
LOSSES: dict[str, Any] = {
    "cross_entropy": {"name": "cross_entropy", "label_smoothing": 0.1, "class_weights": [1, 2.5, 0]},
    "focal": {"name": "focal", "gamma": 1.5, "class_weights": "balanced"},
    "binary_cross_entropy": {"name": "binary_cross_entropy", "label_smoothing": 0.1},
    "by name": "focal",
}
AUGMENTS: dict[str, Any] = {
    "everything": {
        "random_resized_crop": {"scale": [0.5, 1], "ratio": [0.8, 1.25]},
        "hflip": 0.5,
        "vflip": 0.1,
        "color_jitter": {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1},
        "auto_augment": {"name": "randaugment", "num_ops": 3, "magnitude": 5},
        "random_erasing": {"probability": 0.5, "area": [0.1, 0.2]},
    },
    "by name": {"random_resized_crop": True, "auto_augment": "trivialaugment", "random_erasing": {}},
    "nothing": {"random_resized_crop": None, "color_jitter": None, "hflip": 0},
}


def rich_recipes() -> dict[str, dict[str, Any]]:
    """Documents by what is special about them; each is a copy of its own."""
    recipes: dict[str, dict[str, Any]] = {"everything": _everything(), "module": _module()}
    recipes["linear probe"] = {**_data(), "stages": [{"type": "linear_probe", "name": "only", "l2": 0.5}]}
    recipes["shots"] = {**_data(shots_per_class=5, validation=0), "stages": [_stage()]}
    recipes["trackers"] = {**_data(), "stages": [_stage()], "trackers": _trackers()}
    for title, options, key in (
        ("optimizer", OPTIMIZERS, "optimizer"),
        ("schedule", SCHEDULES, "schedule"),
    ):
        for name, value in options.items():
            rule = {"match": "backbone", "learning_rate": 1e-3, key: value}
            recipes[f"{title}: {name}"] = {**_data(), "stages": [_stage(partitions=[rule, FROZEN])]}
    for name, value in LOSSES.items():
        recipes[f"loss: {name}"] = {**_data(), "stages": [_stage(loss=value)]}
    for name, value in AUGMENTS.items():
        recipes[f"augment: {name}"] = {**_data(), "stages": [_stage(augment=value)]}
    return copy.deepcopy(recipes)


def _data(**options: Any) -> dict[str, Any]:
    return {"name": "rich", "backbone": {"source": "builtin:tiny-clip"}, "data": {"source": "digits", **options}}


def _stage(**options: Any) -> dict[str, Any]:
    partitions = [{"match": "head", "learning_rate": 1e-2}, FROZEN]
    return {"steps": 50, "partitions": partitions, **options}


def _everything() -> dict[str, Any]:
    adapters = {"match": ".*_proj/kernel", "name": "adapters", "lora": {"rank": 4, "alpha": 8, "dora": True}}
    decayed = {"weight_decay": 0.05, "weight_decay_on": "all"}
    return {
        "name": "everything",
        "seed": 7,
        "backbone": {
            "source": "owner/name",
            "revision": "main",
            "image_size": 160,
            "dropout": 0.1,
            "drop_path": 0.2,
        },
        "head": {"init": "zero_shot", "templates": ["no {}", "1 {}", "a: {} #"], "num_classes": 3, "dropout": 0.3},
        "data": {
            "source": "owner/images",
            "subset": "small",
            "revision": "v2",
            "columns": {"image": "picture", "label": ["cat", "dog", "no"], "split": "part"},
            "fraction": 0.5,
            "validation": 0.15,
            "test": 0.3,
            "sampling": "balanced",
            "on_broken_image": "skip",
            "cache_shortest_edge": 256,
            "num_workers": 3,
        },
        "stages": [
            {"type": "linear_probe"},
            {**_stage(name="head"), "steps": None, "examples": 3200, "mixup": 0.0},
            _stage(
                type="train",
                name="all",
                steps=None,
                epochs=3,
                batch_size=48,
                grad_accum_steps=2,
                clip_grad_norm=1.0,
                ema_decay=0.99,
                mixup=0.2,
                cutmix=1.0,
                compute_dtype="bfloat16",
                frozen_dtype="bfloat16",
                remat=True,
                carry_optimizer_state=True,
                partitions=[
                    {"match": "head", "learning_rate": 1e-2, "l2_sp": 0.1},
                    {**adapters, "learning_rate": 1e-3, **decayed, "layer_decay": 0.7},
                    {"match": "blocks[-2:]", "learning_rate": 1e-5, "layer_decay": 0.7, "batch_norm": "frozen"},
                    {"match": "norms", "frozen": True, "batch_norm": "update"},
                    FROZEN,
                ],
            ),
        ],
        "evaluate": {"batch_size": 32},
    }


def _trackers() -> list[Any]:
    return [
        "tensorboard",
        {"name": "trackio", "project": "p", "run_name": "r", "group": "g", "space": "owner/name"},
        {
            "name": "wandb",
            "project": "p",
            "entity": "e",
            "run_name": "r",
            "group": "g",
            "tags": ["t"],
            "mode": "offline",
        },
        {"name": "mlflow", "experiment": "e", "tracking_uri": "sqlite:///m.db", "run_name": "r", "tags": {"k": "v"}},
    ]


def _module() -> dict[str, Any]:
    image = {"size": 28, "channels": 3, "mean": [0.4, 0.5, 0.6], "std": 0.25}
    kwargs = {"width": 8, "norm": False, "rate": 0.5, "sizes": [1, 2], "more": {"a": None}}
    return {
        "name": "module",
        "backbone": {"module": "some.package:Net", "kwargs": kwargs, "image": image, "weights": "runs/one"},
        "head": {"init": "none"},
        "data": {"source": "images.csv", "columns": {"label": "species"}},
        "stages": [_stage(partitions=[{"match": "backbone/.*", "learning_rate": 1}])],
    }
