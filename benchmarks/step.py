"""Speed of a ViT-B/32 training step beside what others do with the same work.

    python -m benchmarks.step            # against Flax's guide, and the trainer's loop against the bare step
    python -m benchmarks.step --peers    # and against timm on PyTorch

Prints a table and writes benchmarks/results/step.json. The guide is Flax's transfer-learning guide with transformers'
FlaxCLIPModel. Random weights, float32, batch 32 of 224x224. Each peer runs in an environment of its own, which this
command makes once. All sides are live processes that take turns, a few steps at a time, so that they see the machine
in the same moods; a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SAME = ("jax", "jaxlib", "flax", "optax")  # the guide runs on the versions that this environment has
GUIDE = ["transformers==4.57.6", "safetensors", "pillow"]
TORCH = ["timm==1.0.31", "torch", "torchvision", "transformers==5.23.0", "accelerate==1.15.0", "numpy"]
_INSTALLING = 1800  # seconds that pip may take
# (row, what each side is asked for, steps a turn)
FORWARD = ("forward", {"finetune": "forward", "guide": "forward"}, 3)
FROZEN = ("step, backbone frozen", {"finetune": "frozen", "guide": "frozen"}, 3)
FULL = ("step, all parameters trained", {"finetune": "full", "guide": "full"}, 2)
FULL_TIMM = ("step, all parameters trained", {"finetune": "full", "timm": "full"}, 2)
TRAINER = ("the bare step over the trainer's loop", {"finetune": "trainer", "bare": "full"}, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--peers", action="store_true", help="time timm on PyTorch too")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--environments", type=Path, default=ROOT / "build", help="where the peers' are made")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "step.json")
    args = parser.parse_args()

    size = str(args.batch_size)
    ours = Side([sys.executable, "-m", "benchmarks.step_sides", "finetune", size])
    guide = peer_python(args.environments / "peer-environment", GUIDE, SAME)
    sides = {"finetune": ours, "bare": ours, "guide": Side([guide, "-m", "benchmarks.step_sides", "guide", size])}
    comparisons = [FORWARD, FROZEN, FULL, TRAINER]
    if args.peers:
        sides["timm"] = Side(
            [peer_python(args.environments / "torch-environment", TORCH), "-m", "benchmarks.timm_side", size]
        )
        comparisons.insert(3, FULL_TIMM)
    rows = [compare(sides, *comparison, args) for comparison in comparisons]
    flops = {name: sides[name].ask("flops", 0) for name in ("finetune", "guide")}
    results = {
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "rows": rows,
        "flops": flops,
        "frozen_step_over_forward_flops": flops["finetune"]["frozen"] / flops["finetune"]["forward"],
        "versions": {name: side.ask("versions", 0) for name, side in sides.items() if name != "bare"},
    }
    for side in set(sides.values()):
        side.close()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(results)


def compare(
    sides: dict[str, Side], name: str, asked: dict[str, str], count: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Turn by turn; the ratio is the other side's time over ours."""
    for side, what in asked.items():
        sides[side].ask(what, 1)  # compiles
    times: dict[str, list[float]] = {side: [] for side in asked}
    for turn in range(args.rounds):
        for side in sorted(asked, reverse=turn % 2 == 1):
            sides[side].ask(asked[side], 1)  # untimed: brings its memory and threads back
            times[side].append(sides[side].ask(asked[side], count)["seconds"] / count)
    (other,) = asked.keys() - {"finetune"}
    ratios = [theirs / ours for ours, theirs in zip(times["finetune"], times[other], strict=True)]
    return {
        "what": name,
        "against": other,
        "finetune_images_per_second": args.batch_size / statistics.median(times["finetune"]),
        "other_images_per_second": args.batch_size / statistics.median(times[other]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


class Side:
    """A process that measures one side when asked."""

    def __init__(self, command: list[str], limit: float | None = None) -> None:
        """
        Args:
            limit: seconds that an answer may take.
        """
        more = [os.environ["PYTHONPATH"]] if command[0] == sys.executable and os.environ.get("PYTHONPATH") else []
        path = os.pathsep.join([str(ROOT), *more])  # packages beside this interpreter's are not for another's
        environment = {**os.environ, "PYTHONPATH": path, "TRANSFORMERS_VERBOSITY": "error"}
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two sides share a GPU
        self._name, self._limit = " ".join(command[2:]), limit
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def ask(self, what: str, count: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watch = threading.Timer(self._limit, self._process.kill) if self._limit else None
        if watch is not None:
            watch.start()
        try:
            self._process.stdin.write(f"{what} {count}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            if watch is not None:
                watch.cancel()
        if not answer:
            raise RuntimeError(self._describe_end(self._process.wait()))
        return json.loads(answer)

    def _describe_end(self, code: int) -> str:
        if code == -9 and self._limit:
            return f"{self._name}: no answer in {self._limit:.0f} s, or killed for want of memory"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return f"{self._name} ended with {code}: {lines[-1] if lines else 'no message'}"

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def peer_python(environment: Path, requirements: list[str], same: tuple[str, ...] = ()) -> str:
    """The interpreter of a peer's environment, made where it is not there yet.

    Args:
        same: packages that have to be of the same versions as here.
    """
    from importlib.metadata import version

    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = requirements + [f"{name}=={version(name)}" for name in same]
    done = environment / "requirements.txt"
    if not done.is_file() or done.read_text() != "\n".join(wanted):
        print(f"making {environment} ...", file=sys.stderr)
        venv.create(environment, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True, timeout=_INSTALLING)
        done.write_text("\n".join(wanted))
    return str(python)


def show(results: dict[str, Any]) -> None:
    print(
        f"| ViT-B/32, batch {results['batch_size']}, float32 | against | finetune img/s | other img/s "
        "| ratio (min - max) |"
    )
    print("| --- | --- | --- | --- | --- |")
    for row in results["rows"]:
        ours, other = row["finetune_images_per_second"], row["other_images_per_second"]
        spread = f"{row['ratio']:.3f} ({row['ratio_min']:.3f} - {row['ratio_max']:.3f})"
        print(f"| {row['what']} | {row['against']} | {ours:.1f} | {other:.1f} | {spread} |")
    print(f"\nfrozen step / forward, compiled FLOPs: {results['frozen_step_over_forward_flops']:.4f}")


if __name__ == "__main__":
    main()
