"""What freezing saves: FLOPs, temporary memory and optimizer bytes with the last k of 12 blocks learning.

    python -m benchmarks.freezing        # table, and benchmarks/results/freezing.json

ViT-B/32 at 224 pixels, batch 32, float32, 100 classes, AdamW, with clipping, a moving average and gradient norms. All
numbers are XLA's own analysis of compiled programs; nothing runs. The reference is written out by hand: the forward
pass of the blocks below, then the gradient of the loss with respect to the last k blocks and the head. XLA counts the
body of a loop once, so a step that accumulates two parts is compared with the reference for one part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.step_sides import NUM_CLASSES, Ours
from finetune.evaluation.steps import make_eval_step
from finetune.models.layers.transformer import EncoderLayer
from finetune.models.layers.vision_transformer import VisionTransformer
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.stage_trainer import StageTrainer

BATCH, BLOCKS, LEARNING = 32, 12, (0, 1, 3, 6, 12)
OUTPUT = Path(__file__).parent / "results" / "freezing.json"
MOST_FLOPS, MOST_MEMORY = 1.03, 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    model = Ours(BATCH)
    inference = compiled(
        make_eval_step(model.classifier, model.spec), model.variables, shapes(model, BATCH, weight=True)
    )
    rows = [measure(model, k, parts) for parts in (1, 2) for k in LEARNING]
    memory = temporary(inference)
    frozen = next(row for row in rows if row["blocks"] == 0)
    results = {
        "inference": {"flops": flops(inference), "temporary_bytes": memory},
        "frozen_step_memory_over_inference": frozen["temporary_bytes"] / memory,
        "rows": rows,
    }
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(results)
    if any(row["ratio"] > MOST_FLOPS for row in rows) or frozen["temporary_bytes"] > MOST_MEMORY * memory:
        sys.exit("a bound is violated")


def measure(model: Ours, k: int, parts: int) -> dict[str, Any]:
    """One step with the last ``k`` blocks and the head learning, computed in ``parts``, beside its reference."""
    learning = [{"match": f"blocks[-{k}:]", "learning_rate": 1e-5}] if k else []
    stage = TrainStage.model_validate(
        {
            "steps": 1000,
            "batch_size": BATCH,
            "grad_accum_steps": parts,
            "clip_grad_norm": 1.0,
            "ema_decay": 0.999,
            "partitions": [{"match": "head", "learning_rate": 1e-3}, *learning, {"match": ".*", "frozen": True}],
        }
    )
    training = StageTrainer(stage, model.classifier, model.variables, model.spec, StageLength(1000))
    state = jax.eval_shape(training.init_state)
    step = compiled(training.step, state, training.frozen, shapes(model, BATCH))
    expected = reference(model, k, BATCH // parts)
    learns = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * learns, "the optimizer holds something for a frozen leaf"
    return {
        "blocks": k,
        "parts": parts,
        "flops": flops(step),
        "reference_flops": expected,
        "ratio": flops(step) / expected,
        "temporary_bytes": temporary(step),
        "gradient_bytes": 4 * learns,
        "optimizer_bytes": 4 * moments,
    }


def reference(model: Ours, k: int, size: int) -> float:
    """FLOPs of the forward pass below the last k blocks, and of forward and backward through them and the head."""
    images = shapes(model, size)["image"]
    labels = jax.ShapeDtypeStruct((size,), jnp.int32)
    params = model.variables["params"]
    hidden = jax.eval_shape(lambda p, x: below(model, p, x, BLOCKS - k), params["backbone"], images)
    lower = compiled(jax.jit(lambda p, x: below(model, p, x, BLOCKS - k)), params["backbone"], images)

    def loss(learning: Any, rest: Any, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        logits = above(model, learning, rest, hidden, BLOCKS - k)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    layers = params["backbone"]["encoder"]["layers"]
    learning = {"head": params["head"], **{str(i): layers[str(i)] for i in range(BLOCKS - k, BLOCKS)}}
    rest = {"post_layernorm": params["backbone"]["post_layernorm"]}
    upper = compiled(jax.jit(jax.value_and_grad(loss)), learning, rest, hidden, labels)
    return flops(lower) + flops(upper)


def below(model: Ours, params: Any, images: jax.Array, count: int) -> jax.Array:
    """Embeddings and the first ``count`` blocks, by their modules; the last of twelve for the class token alone."""

    def embed(module: VisionTransformer, x: jax.Array) -> jax.Array:
        return module.pre_layrnorm(module.embeddings(x))

    hidden = nn_apply(embed, model.classifier.backbone, params, model.spec.normalize(images))
    return through(model, params["encoder"]["layers"], hidden, range(count))


def above(model: Ours, learning: Any, rest: Any, hidden: jax.Array, first: int) -> jax.Array:
    hidden = through(model, learning, hidden, range(first, BLOCKS))
    norm = model.classifier.backbone.config.layer_norm_eps
    token = hidden[:, 0]
    token = (token - token.mean(-1, keepdims=True)) * jax.lax.rsqrt(token.var(-1, keepdims=True) + norm)
    token = token * rest["post_layernorm"]["scale"] + rest["post_layernorm"]["bias"]
    return token @ learning["head"]["kernel"] + learning["head"]["bias"]


def through(model: Ours, layers: Any, hidden: jax.Array, numbers: range) -> jax.Array:
    block: Any = EncoderLayer(model.classifier.backbone.config)
    for i in numbers:
        hidden = block.apply({"params": layers[str(i)]}, hidden, None, 1 if i == BLOCKS - 1 else None, False)
    return hidden


def nn_apply(method: Callable[..., jax.Array], module: Any, params: Any, *inputs: Any) -> jax.Array:
    return module.apply({"params": params}, *inputs, method=method)


def shapes(model: Ours, size: int, weight: bool = False) -> dict[str, Any]:
    batch = {
        "image": jax.ShapeDtypeStruct((size, 224, 224, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    return {**batch, "weight": jax.ShapeDtypeStruct((size,), jnp.float32)} if weight else batch


def compiled(function: Any, *arguments: Any) -> Any:
    return function.lower(*arguments).compile()


def flops(program: Any) -> float:
    return float(program.cost_analysis()["flops"])


def temporary(program: Any) -> int:
    return int(program.memory_analysis().temp_size_in_bytes)


def show(results: dict[str, Any]) -> None:
    print(f"ViT-B/32, batch {BATCH}, {NUM_CLASSES} classes, AdamW; clipping, moving average and norms on\n")
    print("| blocks that learn | parts | GFLOP | over the reference | temporary MB | gradients MB | optimizer MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in results["rows"]:
        sizes = (row[name] / 1e6 for name in ("temporary_bytes", "gradient_bytes", "optimizer_bytes"))
        numbers = " | ".join(f"{size:,.1f}" for size in sizes)
        print(f"| {row['blocks']} | {row['parts']} | {row['flops'] / 1e9:,.1f} | {row['ratio']:.4f} | {numbers} |")
    inference = results["inference"]
    print(f"\ninference: {inference['flops'] / 1e9:,.1f} GFLOP, {inference['temporary_bytes'] / 1e6:,.1f} MB temporary")
    print(f"frozen step's temporary memory over inference: {results['frozen_step_memory_over_inference']:.3f}")


if __name__ == "__main__":
    main()
