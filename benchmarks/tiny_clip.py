"""What tiny-clip is worth on real handwritten digits, against starting from nothing.

    python -m benchmarks.tiny_clip       # table, and benchmarks/results/tiny_clip.json

For each seed, 20 images of each digit are drawn; every way of learning sees those 200 images and is measured on the
same 899 others. The way from scratch has the same architecture, with random weights and ten times the epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import finetune
from finetune.data.augment import make_training_transform
from finetune.data.loader import training_batches
from finetune.data.splits import Splits, load_splits
from finetune.evaluation.metrics import evaluate
from finetune.evaluation.steps import make_eval_step
from finetune.recipe import Recipe, TrainStage
from finetune.run.setup import stage_length
from finetune.training.loop import Finished, fit

SCRATCH = TrainStage.model_validate(
    {
        "name": "scratch",
        "epochs": 100,
        "batch_size": 50,
        "partitions": [
            {
                "match": ".*",
                "learning_rate": 1e-3,
                "weight_decay": 0.05,
                "schedule": {"name": "cosine", "warmup": 0.1},
            }
        ],
    }
)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tiny_clip.json")
    args = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        recipe = finetune.load_recipe("quickstart", [f"seed={seed}"])
        splits = load_splits(recipe.data, recipe.seed)
        with tempfile.TemporaryDirectory() as folder:
            results = finetune.run(recipe, output=Path(folder) / "run", quiet=True).summary["results"]
        accuracies = {result["name"]: result["accuracy"] for result in results}
        accuracies["raw pixels, logistic regression"] = raw_pixels(splits)
        accuracies["same architecture from scratch"] = from_scratch(recipe, splits)
        for name, accuracy in accuracies.items():
            rows.setdefault(name, []).append(accuracy)
        print(
            f"seed {seed}: " + ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items()), flush=True
        )
    result = {"shots_per_class": 20, "test_images": len(splits.test), "accuracy": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n| handwritten digits, 20 images of each | accuracy, mean | min - max |\n| --- | --- | --- |")
    for name, values in rows.items():
        print(f"| {name} | {statistics.mean(values):.4f} | {min(values):.4f} - {max(values):.4f} |")


def raw_pixels(splits: Splits) -> float:
    """Logistic regression on the 64 grey values, its strength chosen by cross-validation on the 200 images."""

    def flat(images: Any) -> np.ndarray:
        return np.asarray(images).reshape(len(images), -1) / 255.0

    search = GridSearchCV(LogisticRegression(max_iter=5000), {"C": np.logspace(-2, 4, 13)}, cv=5)
    search.fit(flat(splits.train.images), splits.train.labels)
    return float(search.score(flat(splits.test.images), splits.test.labels))


def from_scratch(recipe: Recipe, splits: Splits) -> float:
    pretrained = finetune.load_backbone(recipe.backbone.origin)
    spec = pretrained.image_spec
    random = pretrained.module.init(jax.random.key(recipe.seed), jnp.zeros((1, spec.height, spec.width, 3)))
    classifier, variables = finetune.build_classifier((pretrained.module, random), len(splits.class_names))
    length = stage_length(SCRATCH, splits.train)
    trainer = finetune.StageTrainer(SCRATCH, classifier, variables, spec, length, seed=recipe.seed)
    transform = make_training_transform(SCRATCH.augment, spec)
    batches = training_batches(splits.train, transform, SCRATCH.batch_size, seed=recipe.seed)
    *_, finished = fit(trainer, trainer.init_state(), batches, log_every=50)
    assert isinstance(finished, Finished)
    trained = trainer.variables(finished.state)
    return evaluate(make_eval_step(classifier, spec), trained, splits.test, spec, 256).accuracy


if __name__ == "__main__":
    main()
