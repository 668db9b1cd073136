"""What does a run bear? Kills, signals, damaged files and other runs on its folder, by real processes.

    python -m benchmarks.faults --kills 30 --flips 200   # table, and benchmarks/results/faults.json

The recipe is the quickstart's, cut down to ten seconds (for flips, one for LeNet): a head, a probe, a stage that
trains, validation and interpolation. Everything is compared with a run that nothing broke: summary, model,
predictions, measured values.
Kills: SIGKILL at a random operation on files or at a random time, then --resume. Flips: a flipped bit or a cut file in
copies of an interrupted and of a finished run. Signals: SIGTERM and SIGINT in every phase. Pairs: two of run, --resume
and --overwrite at once. Members: SIGKILL to one of two processes, then --resume by one, two or four. Cost: of saving
each minute, and of hashing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.faults import cost, flips, kills, members, pairs, signals
from benchmarks.faults.runs import LENET, Workplace

PARTS = ("kills", "flips", "signals", "pairs", "members", "cost")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--signals", type=int, help="two of each phase by default")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--members", type=int, default=10, help="kills of one of two processes")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the runs; a temporary one by default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "faults.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = measure((args.folder or Path(temporary)).absolute(), args)
    known = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
    args.output.write_text(json.dumps({**known, **results}, indent=1) + "\n", encoding="utf-8")
    rows = table(results)
    for name, value, aim, _ in rows:
        print(f"{name:<68} {value:>16}   aim: {aim}")
    if not all(good for *_, good in rows):
        sys.exit("an aim is missed: the failures are in the JSON")


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    if set(args.only) - {"flips", "members", "cost"}:
        place = Workplace(folder / "clip")
        whole = place.prepare()
        if "kills" in args.only:
            results["kills"] = kills.measure(place, whole, args.kills, args.seed)
        if "signals" in args.only:
            results["signals"] = signals.measure(place, args.signals)
        if "pairs" in args.only:
            results["pairs"] = pairs.measure(place, args.pairs, args.seed)
    if "flips" in args.only:
        place = Workplace(folder / "lenet", LENET)
        place.prepare()
        results["flips"] = flips.measure(place, args.flips, args.seed)
    if "members" in args.only:
        results["members"] = members.measure(folder / "members", args.members, args.seed)
    if "cost" in args.only:
        results["cost"] = cost.measure(folder / "cost")
    return results


def table(results: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Rows: what, how much, what is aimed at, and whether that is reached."""
    rows = []
    if part := results.get("kills"):
        of = f"{part['same']} of {part['trials']}"
        rows.append(
            (
                f"runs killed ({part['kills']} times) and resumed to the same bits",
                of,
                "all",
                part["same"] == part["trials"],
            )
        )
        rows.append(("folders that cannot resume", str(part["cannot_resume"]), "0", not part["cannot_resume"]))
    if part := results.get("flips"):
        kinds = ", ".join(f"{count} {name}" for name, count in part["verdicts"].items())
        rows.append((f"flips and truncations: {kinds}; silent", str(part["silent"]), "0", not part["silent"]))
    if part := results.get("signals"):
        of, longest = f"{part['good']} of {part['trials']}", f"{part['longest_seconds']:.1f} s"
        rows.append(
            ("signals: saved, out in time, resumed to the same bits", of, "all", part["good"] == part["trials"])
        )
        rows.append(
            (
                f"the longest until a process was out, load {part['load']:.1f}",
                longest,
                "10 s",
                part["longest_seconds"] <= 10,
            )
        )
        twice = part["second_signal"]
        rows.append(("a second signal: out after", f"{twice['seconds']:.1f} s", "at once", not twice["problem"]))
    if part := results.get("pairs"):
        of = f"{part['good']} of {part['trials']}"
        rows.append(("pairs on one folder: one wins, nothing is lost", of, "all", part["good"] == part["trials"]))
    if part := results.get("members"):
        of = f"{part['same']} of {part['trials']}"
        rows.append(("one of two processes killed, resumed to 1e-6", of, "all", part["same"] == part["trials"]))
        seconds = f"{part['longest_seconds']:.1f} s"
        rows.append(("the longest until the other had ended", seconds, "30 s", part["longest_seconds"] < 30))
    if part := results.get("cost"):
        rows.append(("saving each minute, share of training time", f"{part['share']:.2%}", "2%", part["share"] < 0.02))
        hashing = part["hash_seconds_per_gb"]
        rows.append(("hashing, CPU seconds per GB", f"{hashing:.2f}", "1", hashing < 1))
    return rows


if __name__ == "__main__":
    main()
