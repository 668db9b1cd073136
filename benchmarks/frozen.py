"""What is frozen is computed once: how much faster that is, side by side in one run.

    python -m benchmarks.frozen                  # CIFAR-10 from ../shared/data/cifar10, or else from the hub
    python -m benchmarks.frozen --only probe

Prints the figures and writes them to benchmarks/results/frozen.json, part by part. ViT-B/32 with random weights,
float32, 400 photographs, batches of 32. Compilation is apart on all sides: each is run once before it is timed. A whole
run from kept features is timed; what it is compared with takes too long for that, so some of its steps are, turn by
turn, and multiplied. The guide is Flax's transfer-learning guide with transformers' FlaxCLIPModel, as in
benchmarks.step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.step import GUIDE, ROOT, SAME, Side, peer_python
from benchmarks.step_sides import LEARNING_RATE, NUM_CLASSES, Ours
from finetune.data.feature_store import in_memory, open_store
from finetune.data.labeled_images import EncodedImages, Split
from finetune.data.loader import evaluation_batches, kept_batches
from finetune.models.classifier import build_classifier
from finetune.models.layers.vision_transformer import VisionTransformer
from finetune.models.zero_shot import TextClassifier
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.features import FeatureExtractor, extraction_batch_size
from finetune.training.heads.linear_probe import fit_linear_probe
from finetune.training.heads.lp_plus_plus import fit_lp_plus_plus
from finetune.training.heads.tip_adapter import fit_tip_adapter
from finetune.training.loop import fit
from finetune.training.stage_trainer import StageTrainer

IMAGES, BATCH, ROUNDS = 400, 32, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    local = ROOT.parent / "shared" / "data" / "cifar10"
    parser.add_argument("--cifar10", default=str(local) if local.is_dir() else "uoft-cs/cifar10", help="folder or id")
    parser.add_argument("--only", choices=("stages", "extraction", "probe", "heads"), help="one part alone")
    parser.add_argument("--environments", type=Path, default=ROOT / "build", help="where the guide's is made")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "frozen.json")
    args = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "stages": lambda: stages(args.cifar10, args.environments),
        "extraction": lambda: extraction(args.cifar10),
        "probe": probe,
        "heads": heads,
    }
    results = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
    for name, part in parts.items():
        if args.only in (None, name):
            results[name] = part()
            args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def photographs(source: str) -> Split:
    """The first ones, as they are stored."""
    from datasets import Image, load_dataset

    rows = load_dataset(source, split="train")
    rows = rows.select(range(IMAGES)).cast_column("image", Image(decode=False))
    return Split(EncodedImages(rows, "image"), np.array(rows["label"], np.int32))


class KeptStage:
    """A stage that trains the head and some last blocks, from what is kept or from images."""

    def __init__(self, model: Ours, split: Split, blocks: int, epochs: int) -> None:
        adam = {"optimizer": "adam", "learning_rate": LEARNING_RATE}
        last = [{"match": f"blocks[-{blocks}:]", **adam}] if blocks else []
        rules = [{"match": "head", **adam}, *last, {"match": ".*", "frozen": True}]
        stage = TrainStage.model_validate({"epochs": epochs, "batch_size": BATCH, "partitions": rules})
        per_epoch = IMAGES // BATCH
        length = StageLength(epochs * per_epoch, per_epoch, BATCH)
        self.split, self.spec = split, model.spec
        self.size = extraction_batch_size(256)
        self.trainer = StageTrainer(stage, model.classifier, model.variables, model.spec, length)
        prefix = self.trainer.find_frozen_prefix(self.size)
        assert prefix is not None
        self.extractor = FeatureExtractor(prefix, self.trainer.frozen, model.spec, self.size)
        self.image_step, self.state = self.trainer.step, self.trainer.init_state()
        self.trainer.train_from(prefix)

    def run(self, folder: Path) -> float:
        """Seconds of the whole stage; what is in the folder is reused."""
        began = time.perf_counter()

        def compute(start: int) -> Any:
            return self.extractor.blocks(evaluation_batches(self.split, self.spec, self.size, start), IMAGES - start)

        store = open_store(folder, len(self.split), self.extractor.specs, compute, about={})
        batches: Any = kept_batches(store, self.split.labels, BATCH, seed=0)
        for event in fit(self.trainer, self.trainer.init_state(), batches, log_every=50):
            last = event
        jax.block_until_ready(last)
        return time.perf_counter() - began

    def image_steps(self, count: int) -> float:
        """Seconds of a step from images that are on the device."""
        batch = {"image": jnp.zeros((BATCH, *self.spec.shape), jnp.uint8), "label": jnp.zeros(BATCH, jnp.int32)}
        began = time.perf_counter()
        for _ in range(count):
            self.state, _ = self.image_step(self.state, self.trainer.frozen, batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / count

    def step_flops(self) -> float:
        """Of a step from what is kept."""
        kept = [jnp.zeros((BATCH, *row.shape), row.dtype) for row in self.extractor.specs]
        batch = {"kept": kept, "label": jnp.zeros(BATCH, jnp.int32)}
        return flops(self.trainer.step, self.trainer.init_state(), self.trainer.frozen, batch)


def stages(cifar10: str, environments: Path) -> dict[str, Any]:
    model, split = Ours(BATCH), photographs(cifar10)
    python = peer_python(environments / "peer-environment", GUIDE, SAME)
    guide = Side([python, "-m", "benchmarks.step_sides", "guide", str(BATCH)])
    guide.ask("frozen", 1)  # compiles
    results: dict[str, Any] = {}
    for name, blocks, epochs in (("head", 0, 20), ("last block", 1, 10), ("last 3 blocks", 3, 10)):
        stage = KeptStage(model, split, blocks, epochs)
        steps = stage.trainer.length.total_steps
        with tempfile.TemporaryDirectory() as folder:
            stage.run(Path(folder) / "warm")
        stage.image_steps(1)
        rows: dict[str, list[float]] = {"first": [], "again": [], "off": [], "guide": []}
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                rows["first"].append(stage.run(Path(folder) / "store"))
                rows["again"].append(stage.run(Path(folder) / "store"))
            rows["off"].append(stage.image_steps(3) * steps)
            if not blocks:
                guide.ask("frozen", 1)  # brings its memory back
                rows["guide"].append(guide.ask("frozen", 2)["seconds"] / 2 * steps)
        results[name] = {"epochs": epochs, "kept_bytes": stage.extractor.bytes_per_image}
        results[name] |= {f"{key}_seconds": statistics.median(values) for key, values in rows.items() if values}
        results[name] |= ratios(rows, "off", "first", "over_frozen_cache_off")
        if not blocks:
            results[name] |= ratios(rows, "guide", "first", "over_guide")
            results[name] |= ratios(rows, "guide", "again", "over_guide_when_reused")
        else:
            results[name]["step_flops_over_blocks"] = stage.step_flops() / blocks_flops(model, blocks)
        print(name, results[name], file=sys.stderr)
    guide.close()
    return results


def ratios(rows: dict[str, list[float]], slow: str, fast: str, name: str) -> dict[str, float]:
    values = [a / b for a, b in zip(rows[slow], rows[fast], strict=True)]
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def blocks_flops(model: Ours, blocks: int) -> float:
    """Of a step of a network that has these blocks and no others, without the embedding of its patches."""
    config = model.classifier.backbone.config
    small = type(config)(**{**vars(config), "num_hidden_layers": blocks})
    module = VisionTransformer(small)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    classifier, variables = build_classifier((module, variables), NUM_CLASSES, image_size=224)
    adam = {"optimizer": "adam", "learning_rate": LEARNING_RATE}
    rules = [{"match": "head", **adam}, {"match": f"blocks[-{blocks}:]", **adam}, {"match": ".*", "frozen": True}]
    stage = TrainStage.model_validate({"steps": 1, "batch_size": BATCH, "partitions": rules})
    trainer = StageTrainer(stage, classifier, variables, model.spec, StageLength(1))
    batch = {"image": jnp.zeros((BATCH, 224, 224, 3), jnp.uint8), "label": jnp.zeros(BATCH, jnp.int32)}
    patches = BATCH * (config.image_size // config.patch_size) ** 2
    embedding = 2 * patches * config.patch_size**2 * 3 * config.hidden_size
    return flops(trainer.step, trainer.init_state(), trainer.frozen, batch) - embedding


def flops(function: Any, *arguments: Any) -> float:
    return float(function.lower(*arguments).compile().cost_analysis()["flops"])


def extraction(cifar10: str) -> dict[str, Any]:
    """Bare inference is the same program on images that are prepared and in memory."""
    model, split = Ours(BATCH), photographs(cifar10)
    stage = KeptStage(model, split, 1, 1)
    batches = list(evaluation_batches(split, stage.spec, stage.size))
    step, frozen = stage.extractor._step, stage.trainer.frozen

    def bare() -> float:
        began = time.perf_counter()
        for batch in batches:
            result = step(frozen, jax.device_put(batch["image"]))
        jax.block_until_ready(result)
        return time.perf_counter() - began

    def compute(start: int) -> Any:
        return stage.extractor.blocks(evaluation_batches(split, stage.spec, stage.size, start), len(split) - start)

    def memory() -> float:
        began = time.perf_counter()
        in_memory(compute)
        return time.perf_counter() - began

    def stored() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            open_store(Path(folder) / "store", len(split), stage.extractor.specs, compute, about={})
            return time.perf_counter() - began

    rows = turns({"bare": bare, "memory": memory, "stored": stored}, ROUNDS)
    return {
        "images": len(split),
        **ratios(rows, "bare", "stored", "speed_over_bare_inference"),
        **ratios(rows, "stored", "memory", "store_over_memory"),
    }


def turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each side once untimed, then in turn, in alternating order."""
    for side in sides.values():
        side()
    rows: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in sorted(sides, reverse=turn % 2 == 1):
            rows[name].append(sides[name]())
    return rows


def probe() -> dict[str, Any]:
    """Against scikit-learn's LogisticRegression: at its default tolerance, and for many classes at an equal objective.

    Features of networks are correlated; of features that are not, a few steps of scikit-learn's solver are enough.
    """
    results: dict[str, Any] = {
        "10 classes": beside_scikit_learn(10, correlated=True, rounds=ROUNDS),
        "10 classes, uncorrelated features": beside_scikit_learn(10, correlated=False, rounds=ROUNDS),
        "1000 classes, equal objective": beside_scikit_learn(1000, correlated=True, rounds=1, tol=1e-6, max_iter=100),
    }
    x, y = features_of_classes(200, 192, 10, correlated=True)
    fit_linear_probe(x, y, 10)
    began = cpu_seconds()
    jax.block_until_ready(fit_linear_probe(x, y, 10).kernel)
    results["sweep of the quickstart's size, CPU seconds"] = cpu_seconds() - began
    return results


def beside_scikit_learn(classes: int, *, correlated: bool, rounds: int, **options: Any) -> dict[str, Any]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, y = features_of_classes(10_000, 512, classes, correlated=correlated)
    fitted: dict[str, Any] = {}

    def ours() -> float:
        began = time.perf_counter()
        fitted["ours"] = fit_linear_probe(x, y, classes, 1.0)
        jax.block_until_ready(fitted["ours"].kernel)
        return time.perf_counter() - began

    def theirs() -> float:
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted["theirs"] = LogisticRegression(C=1.0, **options).fit(x, y)
        return time.perf_counter() - began

    ours()
    rows: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    for _ in range(rounds):
        rows["ours"].append(ours())
        rows["scikit-learn"].append(theirs())
    kernel, bias, other = np.asarray(fitted["ours"].kernel), np.asarray(fitted["ours"].bias), fitted["theirs"]
    result = {
        **ratios(rows, "scikit-learn", "ours", "over_scikit_learn"),
        "objective": objective(x, y, kernel, bias),
        "scikit_learn_objective": objective(x, y, other.coef_.T, other.intercept_),
        "iterations": fitted["ours"].iterations,
        "scikit_learn_iterations": int(other.n_iter_[0]),
    }
    print(classes, result, file=sys.stderr)
    return result


def features_of_classes(count: int, width: int, classes: int, *, correlated: bool) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, about two thirds of ten can be told apart; of unit variance, as features of networks are."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count)
    x = rng.normal(size=(classes, width))[labels] + 12 * rng.normal(size=(count, width))
    if correlated:
        x @= rng.normal(size=(width, width)) * np.geomspace(1, 0.03, width)[:, None] / np.sqrt(width)
    return (x / x.std()).astype(np.float32), labels


def objective(x: np.ndarray, y: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> float:
    """In float64: mean cross-entropy + ||kernel||^2 / (2 n)."""
    logits = x.astype(np.float64) @ kernel + bias
    logits -= logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    return float(losses.mean() + 0.5 / len(y) * (kernel.astype(np.float64) ** 2).sum())


def heads() -> dict[str, float]:
    """Seconds of a second fit, and of the first with its compilation: 16 images of each of 100 classes."""
    rng = np.random.default_rng(0)
    classes, shots, width = 100, 16, 512
    directions = rng.normal(size=(width, classes))
    prompts = directions + rng.normal(size=directions.shape)
    prompts /= np.linalg.norm(prompts, axis=0)
    text = TextClassifier(jnp.eye(width), jnp.asarray(prompts, jnp.float32), 100.0)
    y = np.repeat(np.arange(classes), shots)
    x = (directions.T[y] + 2 * rng.normal(size=(len(y), width))).astype(np.float32)
    fits: dict[str, Callable[[], Any]] = {
        "lp++": lambda: fit_lp_plus_plus(x, y, classes, text),
        "tip_adapter": lambda: fit_tip_adapter(x, y, classes, text),
        "tip_adapter, 20 epochs": lambda: fit_tip_adapter(x, y, classes, text, epochs=20),
    }
    results = {}
    for name, function in fits.items():
        for when in ("first", "second"):
            began = time.perf_counter()
            jax.block_until_ready(function())
            results[f"{name}, {when}"] = time.perf_counter() - began
    return results


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
