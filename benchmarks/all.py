"""Every benchmark and every peer, one after the other, on this machine.

    python -m benchmarks.all --quick     # about ten minutes on two cores, once the peers' environments are there
    python -m benchmarks.all --full      # all of it, as README's table has it: hours
    python -m benchmarks.all --full --gpu

Writes benchmarks/results/<machine>.json and a Markdown table beside it; the machine is its processor, its GPUs and the
number of its cores. Each benchmark is a process of its own: one that fails or takes too long is reported, and the next
one runs. After 15 minutes, or 6 hours, what still runs is cut off; what it had measured is kept.

Environments for the peers are made under build/ by pip, in minutes, the first time; for PyTorch without CUDA set
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. Model hubs are not asked: all weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, slug_of
from benchmarks.peers import PEERS
from benchmarks.peers import table as peers_table
from benchmarks.step import ROOT, peer_python

SHARED = ROOT.parent / "shared"
CIFAR10, MOBILENET = SHARED / "data" / "cifar10", SHARED / "weights" / "mobilenetv2_100"
FASHION = SHARED / "data" / "fashion-mnist"
_QUICK, _FULL = 15 * 60.0, 6 * 3600.0  # seconds after which the last one is cut off
_ONE = 2 * 3600.0  # that one may take


@dataclass(frozen=True)
class Benchmark:
    """A module of this package.

    Attributes:
        quick: its arguments in a quick run; None where it takes too long for one.
        full: its arguments otherwise.
        needs: data and weights that it reads.
    """

    name: str
    quick: tuple[str, ...] | None
    full: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()


BENCHMARKS = (
    Benchmark("bench", ()),
    Benchmark("lenet", ()),
    Benchmark("tiny_clip", ("--seeds", "1")),
    Benchmark("peers", ("--batch-size", "4", "--rounds", "2", "--limit", "200")),  # the longest of a quick run
    Benchmark("freezing", None),
    Benchmark("step", None, ("--peers",)),
    Benchmark("frozen", None, (), (CIFAR10,)),
    Benchmark("vit_large", None),
    Benchmark("report", None),
    Benchmark("input_pipeline", None, (), (CIFAR10,)),
    Benchmark("doctor", None, (), (CIFAR10, MOBILENET)),
    Benchmark("truth", None, (), (CIFAR10, MOBILENET, FASHION)),
    Benchmark("mobilenet_probe", None, (str(MOBILENET), str(CIFAR10)), (CIFAR10, MOBILENET)),
    Benchmark("lite0_probe", None, (), (CIFAR10, MOBILENET)),
    Benchmark("own_images", None, (), (CIFAR10, MOBILENET)),
    Benchmark("faults", None),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="the short ones, in about ten minutes")
    size.add_argument("--full", action="store_true", help="all of them")
    parser.add_argument(
        "--gpu", action="store_true", help="and ViT-B/32 and ViT-L/14 in bfloat16 against timm compiled"
    )
    parser.add_argument(
        "--here", action="store_true", help="run peers in this environment, where it has their packages"
    )
    parser.add_argument("--only", nargs="+", choices=[one.name for one in BENCHMARKS], help="these alone")
    parser.add_argument("--environments", type=Path, default=ROOT / "build", help="where the peers' are made")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    args = parser.parse_args()

    machine, load = describe_machine(), os.getloadavg()[0]
    environments = {} if args.here else make_environments(args.environments)
    chosen = [one for one in BENCHMARKS if args.only is None or one.name in args.only]
    records = list(run_all(chosen, args, [name for name, problem in environments.items() if problem is None]))
    results = without_paths(
        {
            "machine": machine,
            "load": round(load, 1),
            "mode": "quick" if args.quick else "full",
            "seconds": sum(record.get("seconds", 0) for record in records),
            "environments": {name: problem or "made" for name, problem in environments.items()},
            "benchmarks": records,
        }
    )
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / f"{slug_of(machine)}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = describe(results)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    if any(record["status"] == "failed" for record in records):
        sys.exit("some benchmarks failed")


def make_environments(folder: Path) -> dict[str, str | None]:
    """Name of each peer's environment -> why it could not be made; None where it is there."""
    problems: dict[str, str | None] = {}
    for peer in PEERS:
        if peer.environment in problems:
            continue
        try:
            peer_python(folder / peer.environment, peer.requirements, peer.same)
            problems[peer.environment] = None
        except (OSError, subprocess.SubprocessError) as error:
            problems[peer.environment] = f"could not be made: {error}"
            say(f"{peer.environment}: {problems[peer.environment]}")
    return problems


def run_all(chosen: Iterable[Benchmark], args: argparse.Namespace, environments: list[str]) -> Iterable[dict[str, Any]]:
    """A record of each: what it gave, or why it gave nothing."""
    left = _QUICK if args.quick else _FULL
    for one in chosen:
        record: dict[str, Any] = {"name": one.name}
        reason = why_not(one, args.quick, left)
        if reason is not None:
            say(f"{one.name}: skipped: {reason}")
            yield {**record, "status": "skipped", "reason": reason}
            continue
        say(f"{one.name} ...")
        arguments = list(one.quick if args.quick and one.quick is not None else one.full)
        if one.name == "peers":
            arguments += peer_arguments(args, environments)
        began = time.perf_counter()
        record |= run_one(one.name, arguments, min(left, _ONE))
        if record["status"] == "unended":
            over = left <= _ONE
            record["status"] = "cut off" if over else "failed"
            record["reason"] = "the time for all was over" if over else f"did not end in {_ONE:.0f} s"
        record["seconds"] = round(time.perf_counter() - began, 1)
        left -= record["seconds"]
        say(f"{one.name}: {record['status']} in {record['seconds']:.0f} s")
        yield record


def why_not(one: Benchmark, quick: bool, left: float) -> str | None:
    """Why a benchmark is left out; None where it runs."""
    if quick and one.quick is None:
        return "takes too long for --quick"
    if missing := [str(path) for path in one.needs if not path.exists()]:
        return f"needs {', '.join(Path(path).name for path in missing)}, which are not in ../shared"
    return "no time is left" if left < 10 else None


def peer_arguments(args: argparse.Namespace, environments: list[str]) -> list[str]:
    """Which peers take part, and where they are."""
    if args.here:
        return ["--here", *(["--gpu"] if args.gpu else [])]
    names = [peer.name for peer in PEERS if peer.environment in environments]
    return [*(["--gpu"] if args.gpu else []), "--environments", str(args.environments), "--only", *names]


def run_one(name: str, arguments: list[str], limit: float) -> dict[str, Any]:
    """Status, results and what it printed, or the reason of its failure; "unended" where the limit, in s, ended it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--output", str(output)]
        if name == "bench":
            command = [sys.executable, "-m", "finetune.cli", "bench", "quickstart"]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            printed, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # with the sides that it started
            process.communicate()
            return {**_read(output), "status": "unended"}
        found = _read(output)
        if process.returncode:
            lines = [line for line in errors.splitlines() if line.strip()]
            return {**found, "status": "failed", "reason": lines[-1] if lines else f"exit code {process.returncode}"}
        return {**found, "status": "done", "printed": printed.strip()}


def _read(output: Path) -> dict[str, Any]:
    """The results that a benchmark wrote, as far as it came."""
    return {"results": json.loads(output.read_text(encoding="utf-8"))} if output.is_file() else {}


def describe(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine, records = results["machine"], results["benchmarks"]
    devices = ", ".join([*machine["gpus"], f"{machine['processor']}, {machine['cores']} cores"])
    lines = [
        f"# {devices}",
        "",
        f"`python -m benchmarks.all --{results['mode']}`: {machine['memory_gb']} GiB, {machine['system']}, Python "
        f"{machine['python']}; {results['seconds']:.0f} s. Ratios are medians over turns: the other's time over "
        "this toolkit's.",
    ]
    if results["load"] > 0.5 * machine["cores"]:
        lines += [
            "",
            f"**Other programs were running** (load {results['load']} at the start): do not trust these figures.",
        ]
    for record in records:
        if record["name"] == "peers" and "results" in record:
            lines += ["", "## Peers", "", peers_table(record["results"]), "", _versions(record["results"]["versions"])]
    lines += ["", "## All", "", "| benchmark | status | seconds |", "| --- | --- | --- |"]
    for record in records:
        reason = f": {record['reason']}" if "reason" in record else ""
        lines.append(f"| {record['name']} | {record['status']}{reason} | {record.get('seconds', '')} |")
    for record in records:
        if record.get("printed") and record["name"] != "peers":
            lines += ["", f"### {record['name']}", "", "```", record["printed"], "```"]
    return "\n".join(lines) + "\n"


def _versions(versions: dict[str, dict[str, Any]]) -> str:
    return "; ".join(
        f"{side}: " + ", ".join(f"{name} {version}" for name, version in packages.items())
        for side, packages in versions.items()
    )


def without_paths(value: Any) -> Any:
    """The same with every absolute path cut down to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return re.sub(r"(?<![\w/:.])/(?:[\w.@+-]+/)+", "", value) if isinstance(value, str) else value


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
