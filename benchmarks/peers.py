"""The full training step of a ViT-B/32 here and in what others use, turn by turn; each in an environment of its own.

    python -m benchmarks.peers           # table, and benchmarks/results/peers.json

Flax's transfer-learning guide with transformers' FlaxCLIPModel, timm on PyTorch as it is and compiled, transformers'
Trainer with timm's model, and keras-hub on JAX. Random weights, float32, Adam over all parameters, 100 classes; images
of 224 pixels, in memory. ``--gpu`` adds ViT-B/32 and ViT-L/14 in bfloat16 against timm compiled, with the share of the
device's peak. Environments are made under build/ by pip, once; no model hub is asked. What cannot be installed or does
not run is told with its reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.step import FORWARD, FROZEN, FULL, GUIDE, ROOT, SAME, TORCH, TRAINER, Side, compare, peer_python

KERAS = ["keras-hub==0.32.0"]
_KERAS_SAME = ("jax", "jaxlib")
_GPU_BATCHES = {"vit_b32": (512, 256, 128, 64), "vit_l14": (128, 64, 32, 16)}  # the first that fits is taken


@dataclass(frozen=True)
class Peer:
    """Attributes:
    environment: name of the folder that holds it.
    requirements, same: as for :func:`peer_python`.
    module: with arguments, the side that is started.
    rows: comparisons with it, as in ``benchmarks.step``.
    """

    name: str
    environment: str
    requirements: list[str]
    same: tuple[str, ...]
    module: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, str], int], ...]


def _full(name: str, what: str = "full") -> tuple[tuple[str, dict[str, str], int], ...]:
    return (("step, all parameters trained", {"finetune": "full", name: what}, 2),)


PEERS = (
    Peer("guide", "peer-environment", GUIDE, SAME, ("step_sides", "guide"), (FORWARD, FROZEN, FULL)),
    Peer("timm", "torch-environment", TORCH, (), ("timm_side",), _full("timm")),
    Peer("timm compiled", "torch-environment", TORCH, (), ("timm_side",), _full("timm compiled", "compiled")),
    Peer("Trainer", "torch-environment", TORCH, (), ("trainer_side",), _full("Trainer")),
    Peer("keras-hub", "keras-environment", KERAS, _KERAS_SAME, ("keras_side",), _full("keras-hub")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--gpu", action="store_true", help="and larger networks in bfloat16, against timm compiled")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a side may take to answer")
    parser.add_argument(
        "--here", action="store_true", help="run peers in this environment, where it has their packages"
    )
    parser.add_argument("--only", nargs="*", choices=[peer.name for peer in PEERS], help="these peers alone")
    parser.add_argument("--environments", type=Path, default=ROOT / "build", help="where the peers' are made")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "peers.json")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    results: dict[str, Any] = {"batch_size": args.batch_size, "rounds": args.rounds, "rows": rows, "versions": {}}

    def keep() -> None:
        """Writes what there is, so that an end before the last row loses none."""
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    measure_peers(args, rows, results["versions"], keep)
    for model in _GPU_BATCHES if args.gpu else ():
        rows.append(measure_gpu(model, args))
        keep()
    print(table(results))
    if all("problem" in row for row in rows):
        sys.exit("no peer could be measured")


def measure_peers(
    args: argparse.Namespace, rows: list[dict[str, Any]], versions: dict[str, Any], keep: Callable[[], None]
) -> None:
    """Adds rows of comparisons, those that failed with their ``problem``, and the versions of each side.

    Args:
        keep: is called after each peer.
    """
    with _side([sys.executable, "-m", "benchmarks.step_sides", "finetune", str(args.batch_size)], args.limit) as ours:
        versions["finetune"] = ours.ask("versions", 0)
        for peer in PEERS:
            if args.only is not None and peer.name not in args.only:
                rows.append({"what": peer.rows[0][0], "against": peer.name, "problem": "left out"})
                continue
            with _reported(rows, peer.rows[0][0], peer.name):
                module, *further = peer.module
                command = [_python(peer, args), "-m", f"benchmarks.{module}", *further, str(args.batch_size)]
                with _side(command, args.limit) as other:
                    versions[peer.name] = other.ask("versions", 0)
                    for row in peer.rows:
                        rows.append(compare({"finetune": ours, peer.name: other}, *row, args))
            keep()
        with _reported(rows, TRAINER[0], "bare"):
            rows.append(compare({"finetune": ours, "bare": ours}, *TRAINER, args))
        keep()


def measure_gpu(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """A full step in bfloat16 against timm compiled, with the largest batch of those tried that both hold."""
    what, peer = f"{model}, bfloat16, all parameters trained", PEERS[2]
    problems: list[dict[str, Any]] = []
    for size in _GPU_BATCHES[model]:
        ours = [sys.executable, "-m", "benchmarks.step_sides", "finetune", str(size), model, "bfloat16"]
        with _reported(problems, what, peer.name):
            theirs = [_python(peer, args), "-m", "benchmarks.timm_side", str(size), "--model", model]
            with _side(ours, args.limit) as mine, _side([*theirs, "--dtype", "bfloat16"], args.limit) as other:
                sides, asked = {"finetune": mine, peer.name: other}, {"finetune": "full", peer.name: "compiled"}
                row = compare(sides, what, asked, 10, argparse.Namespace(rounds=args.rounds, batch_size=size))
                return {**row, "batch_size": size, **_shares(row, size, mine.ask("peak", 0))}
    return problems[-1]


def _shares(row: dict[str, Any], size: int, peak: dict[str, Any]) -> dict[str, Any]:
    """Of the peak, both by the FLOPs of our step."""
    per_image = peak["flops"] / size
    return {
        "device": peak["device"],
        "gflop_per_image": per_image / 1e9,
        "share_of_peak": row["finetune_images_per_second"] * per_image / peak["peak"],
        "other_share_of_peak": row["other_images_per_second"] * per_image / peak["peak"],
    }


def _python(peer: Peer, args: argparse.Namespace) -> str:
    """The interpreter that has a peer's packages."""
    if args.here:
        return sys.executable
    return peer_python(args.environments / peer.environment, peer.requirements, peer.same)


@contextmanager
def _side(command: list[str], limit: float) -> Iterator[Side]:
    side = Side(command, limit)
    try:
        yield side
    finally:
        side.close()


@contextmanager
def _reported(rows: list[dict[str, Any]], what: str, against: str) -> Iterator[None]:
    """A comparison that fails is a row with its problem."""
    try:
        yield
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        packages = isinstance(error, subprocess.SubprocessError)
        problem = "its environment could not be made: pip failed" if packages else str(error)
        print(f"{against}: {problem}", file=sys.stderr)
        rows.append({"what": what, "against": against, "problem": problem})


def table(results: dict[str, Any]) -> str:
    lines = ["| step | batch | against | finetune img/s | other img/s | ratio (min - max) | share of peak |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in results["rows"]:
        size, share = row.get("batch_size", results["batch_size"]), ""
        if "problem" in row:
            lines.append(f"| {row['what']} | {size} | {row['against']} | not measured: {row['problem']} | | | |")
            continue
        if "share_of_peak" in row:
            share = f"{row['share_of_peak']:.1%}; other {row['other_share_of_peak']:.1%}"
        ours, other = row["finetune_images_per_second"], row["other_images_per_second"]
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} - {row['ratio_max']:.2f})"
        lines.append(f"| {row['what']} | {size} | {row['against']} | {ours:.1f} | {other:.1f} | {ratio} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
