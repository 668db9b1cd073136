"""Speed of a ViT-B/32 training step against Flax's transfer-learning guide with transformers' FlaxCLIPModel.

    python -m benchmarks.step            # table, and benchmarks/results/step.json

Random weights, float32, batch 32 of 224x224. The guide's side runs in an environment of its own with transformers
4.57, which this command makes once. Both sides are live processes that take turns, a few steps at a time, so that
both see the machine in the same moods; a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PEER_REQUIREMENTS = ["transformers==4.57.6", "safetensors", "pillow"]
WHAT = {"forward": "forward", "frozen": "step, backbone frozen", "full": "step, everything learns"}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "peer-environment")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "step.json")
    args = parser.parse_args()

    sides = {
        "finetune": Side([sys.executable, "-m", "benchmarks.step_sides", "finetune", str(args.batch_size)]),
        "guide": Side(
            [str(peer_python(args.environment)), "-m", "benchmarks.step_sides", "guide", str(args.batch_size)]
        ),
    }
    steps = {"forward": 3, "frozen": 3, "full": 2}
    results: dict[str, Any] = {"batch_size": args.batch_size, "rounds": args.rounds, "rows": []}
    for what, count in steps.items():
        for side in sides.values():
            side.ask(what, 1)  # compiles
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(args.rounds):
            for name in sorted(sides, reverse=turn % 2 == 1):
                times[name].append(sides[name].ask(what, count)["seconds"] / count)
        ratios = [guide / ours for ours, guide in zip(times["finetune"], times["guide"], strict=True)]
        row = {
            "what": WHAT[what],
            "finetune_images_per_second": args.batch_size / statistics.median(times["finetune"]),
            "guide_images_per_second": args.batch_size / statistics.median(times["guide"]),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
        results["rows"].append(row)
    flops = {name: side.ask("flops", 0) for name, side in sides.items()}
    results["flops"] = flops
    results["frozen_step_over_forward_flops"] = flops["finetune"]["frozen"] / flops["finetune"]["forward"]
    results["versions"] = {name: side.ask("versions", 0) for name, side in sides.items()}
    for side in sides.values():
        side.close()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(results)


class Side:
    """A process that measures one side when asked."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def ask(self, what: str, count: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what} {count}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def peer_python(environment: Path) -> Path:
    """The interpreter of the guide's environment, with the same jax, flax and optax as this one."""
    from importlib.metadata import version

    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    same = [f"{name}=={version(name)}" for name in ("jax", "jaxlib", "flax", "optax")]
    done = environment / "requirements.txt"
    wanted = "\n".join(PEER_REQUIREMENTS + same)
    if not done.is_file() or done.read_text() != wanted:
        print(f"making {environment} ...", file=sys.stderr)
        venv.create(environment, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEER_REQUIREMENTS, *same], check=True)
        done.write_text(wanted)
    return python


def show(results: dict[str, Any]) -> None:
    print(f"| ViT-B/32, batch {results['batch_size']}, float32 | finetune img/s | guide img/s | ratio (min - max) |")
    print("| --- | --- | --- | --- |")
    for row in results["rows"]:
        ours, guide = row["finetune_images_per_second"], row["guide_images_per_second"]
        spread = f"{row['ratio']:.3f} ({row['ratio_min']:.3f} - {row['ratio_max']:.3f})"
        print(f"| {row['what']} | {ours:.1f} | {guide:.1f} | {spread} |")
    print(f"\nfrozen step / forward, compiled FLOPs: {results['frozen_step_over_forward_flops']:.4f}")


if __name__ == "__main__":
    main()
