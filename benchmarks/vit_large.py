"""What a ViT-L/14 costs before its first step is done: loading, compiling, and the step's latency.

    python -m benchmarks.vit_large       # table, and benchmarks/results/vit_large.json

Writes a checkpoint of random weights in transformers' layout (CLIP's ViT-L/14 vision tower, 1.2 GB, in shards) to a
temporary folder and loads it in a fresh process, whose peak memory is the kernel's own figure. Then it compiles the
training step with everything learning, and with the backbone frozen, and runs each once.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
SHARD_BYTES = 300 * 2**20
CONFIG = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "vit_large.json")
    parser.add_argument("--side", choices=["load", "full", "frozen"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(load(args.folder) if args.side == "load" else first_step(args.folder, args)))
        return
    results: dict[str, Any]
    with tempfile.TemporaryDirectory() as name:
        size = write_checkpoint(Path(name))
        results = {"checkpoint_bytes": size, "batch_size": args.batch_size}
        for side in ("load", "full", "frozen"):
            results[side] = ask(side, Path(name), args.batch_size)
    results["peak_memory_over_checkpoint"] = results["load"]["peak_bytes"] / size
    print(f"checkpoint {size / 1e9:.2f} GB; loading peaks at {results['peak_memory_over_checkpoint']:.2f} times that,")
    print(f"  the {results['load']['imports_bytes'] / 1e9:.2f} GB of the imported libraries included")
    for side in ("full", "frozen"):
        row = results[side]
        print(
            f"{side:7} step, batch {args.batch_size}: trace {row['trace_seconds']:.1f} s, "
            f"compile {row['compile_seconds']:.1f} s, first {row['first_seconds']:.1f} s, "
            f"second {row['second_seconds']:.1f} s"
        )
    args.output.write_text(json.dumps(results, indent=1) + "\n")


def ask(side: str, folder: Path, batch_size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.vit_large", "--side", side, "--folder", str(folder)]
    run = subprocess.run([*command, "--batch-size", str(batch_size)], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def write_checkpoint(folder: Path) -> int:
    """Random weights under transformers' names, in shards; gives the bytes."""
    import jax
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save_file

    from finetune.models.families.clip import FAMILY

    reader = FAMILY.reader("transformers", "clip_vision_model")
    assert reader is not None
    module = FAMILY.module(reader.read(CONFIG, ()).config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))
    rng, shards = np.random.default_rng(0), 0
    shard: dict[str, np.ndarray] = {}
    index: dict[str, str] = {}
    (folder / "config.json").write_text(json.dumps(CONFIG))

    def flush() -> None:
        nonlocal shard, shards
        shards += 1
        save_file(shard, folder / f"model-{shards:05}.safetensors")
        index.update(dict.fromkeys(shard, f"model-{shards:05}.safetensors"))
        shard = {}

    for path, leaf in flatten_dict(shapes["params"]).items():
        name, array = torch_tensor(path, 0.02 * rng.standard_normal(leaf.shape, np.float32))
        shard[name] = np.ascontiguousarray(array)
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def torch_tensor(path: tuple[str, ...], array: np.ndarray) -> tuple[str, np.ndarray]:
    leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(path[-1], path[-1])
    if path[-1] == "kernel":
        array = array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
    return ".".join([*path[:-1], leaf]), array


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load(folder: Path) -> dict[str, Any]:
    import jax

    from finetune.models.backbone import load_backbone

    jax.block_until_ready(jax.numpy.zeros(1))
    imports, start = peak_bytes(), time.perf_counter()
    jax.block_until_ready(load_backbone(folder).variables)
    return {"imports_bytes": imports, "peak_bytes": peak_bytes(), "seconds": time.perf_counter() - start}


def first_step(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Trace, compile and run the trainer's own step twice."""
    import jax

    import finetune
    from finetune.optim.schedules import StageLength
    from finetune.recipe import Partition, TrainStage
    from finetune.training.stage_trainer import StageTrainer

    backbone = finetune.load_backbone(folder)
    classifier, variables = finetune.build_classifier(backbone, 10)
    rules = [Partition(match="head", learning_rate=1e-4)]
    rest = {"frozen": True} if args.side == "frozen" else {"learning_rate": 1e-5}
    rules.append(Partition.model_validate({"match": "backbone", **rest}))
    training = StageTrainer(
        TrainStage(steps=100, partitions=rules), classifier, variables, backbone.image_spec, StageLength(100)
    )
    state = training.init_state()
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (args.batch_size, 224, 224, 3)).astype(np.uint8),
        "label": rng.integers(0, 10, args.batch_size),
    }
    step, frozen, marks = training.step, training.frozen, [time.perf_counter()]

    def mark() -> float:
        marks.append(time.perf_counter())
        return marks[-1] - marks[-2]

    lowered = step.lower(state, frozen, batch)  # type: ignore[attr-defined]
    times = {"trace_seconds": mark()}
    compiled = lowered.compile()
    times["compile_seconds"] = mark()
    for name in ("first_seconds", "second_seconds"):
        state, _ = jax.block_until_ready(compiled(state, frozen, batch))
        times[name] = mark()
    return {**times, "peak_bytes": peak_bytes(), "gflop": compiled.cost_analysis()["flops"] / 1e9}


if __name__ == "__main__":
    main()
