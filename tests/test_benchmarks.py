"""``python -m benchmarks.all``: a benchmark that cannot run is told, and the others run."""

import argparse
import json
import sys

import pytest

from benchmarks import all as benchmarks
from benchmarks.machine import slug_of
from benchmarks.peers import PEERS
from benchmarks.peers import table as peers_table
from benchmarks.step import ROOT, Side

MACHINE = {"processor": "AMD EPYC", "cores": 2, "memory_gb": 24, "gpus": [], "system": "Linux x86_64", "python": "3.11"}


@pytest.mark.parametrize(
    ("processor", "cores", "gpus", "slug"),
    [
        ("AMD EPYC", 2, [], "amd-epyc-2-cores"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", 4, [], "intel-xeon-4-cores"),
        ("AMD EPYC 7763 64-Core Processor", 8, [], "amd-epyc-7763-8-cores"),
        ("AMD EPYC", 16, ["NVIDIA H200"], "nvidia-h200-amd-epyc-16-cores"),
        ("AMD EPYC", 16, ["NVIDIA L4"] * 4, "4x-nvidia-l4-amd-epyc-16-cores"),
    ],
)
def test_results_are_named_by_processor_and_gpus(processor, cores, gpus, slug):
    assert slug_of({"processor": processor, "cores": cores, "gpus": gpus}) == slug


def test_results_have_no_folders_of_the_machine():
    told = {"reason": "No such file: '/home/someone/data/cifar10'", "rows": ["/a/b/c.py line 3", 4, None]}
    cleaned = {"reason": "No such file: 'cifar10'", "rows": ["c.py line 3", 4, None]}
    assert benchmarks.without_paths(told) == cleaned
    for kept in ("https://example.org/a/b", "images/s", "1/2", "benchmarks/results/x.json"):
        assert benchmarks.without_paths(kept) == kept


def arguments(**given):
    return argparse.Namespace(**{"quick": True, "gpu": False, "here": False, "environments": ROOT / "build", **given})


def test_one_that_fails_or_lacks_its_data_does_not_stop_the_others(monkeypatch, tmp_path):
    outcomes = {
        "lenet": {"status": "failed", "reason": "ValueError: no"},
        "tiny_clip": {"status": "done", "results": {}, "printed": "fine"},
    }
    monkeypatch.setattr(benchmarks, "run_one", lambda name, *_: outcomes[name])
    chosen = [
        benchmarks.Benchmark("lenet", ()),
        benchmarks.Benchmark("doctor", (), needs=(tmp_path / "cifar10",)),
        benchmarks.Benchmark("faults", None),
        benchmarks.Benchmark("tiny_clip", ()),
    ]
    records = list(benchmarks.run_all(chosen, arguments(), []))
    assert [record["status"] for record in records] == ["failed", "skipped", "skipped", "done"]
    assert "cifar10" in records[1]["reason"]
    results = {"machine": MACHINE, "load": 0.3, "mode": "quick", "seconds": 1, "benchmarks": records}
    shown = benchmarks.describe(results)
    for line in ("| lenet | failed: ValueError: no |", "| faults | skipped: takes too long for --quick |", "fine"):
        assert line in shown
    assert "Other programs were running" not in shown
    assert "Other programs were running" in benchmarks.describe({**results, "load": 3.0})


def test_a_quick_run_ends_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(benchmarks, "_QUICK", 5.0)
    (record,) = benchmarks.run_all([benchmarks.Benchmark("lenet", ())], arguments(), [])
    assert (record["status"], record["reason"]) == ("skipped", "no time is left")


@pytest.mark.parametrize(
    ("limit", "status", "reason"),
    [("_QUICK", "cut off", "the time for all was over"), ("_ONE", "failed", "did not end in 11 s")],
)
def test_an_end_of_the_time_for_all_is_no_failure_but_a_benchmark_that_hangs_is(monkeypatch, limit, status, reason):
    kept = {"rows": [1.5]}
    monkeypatch.setattr(benchmarks, "run_one", lambda *_: {"results": kept, "status": "unended"})
    monkeypatch.setattr(benchmarks, limit, 11.0)
    (record,) = benchmarks.run_all([benchmarks.Benchmark("lenet", ())], arguments(), [])
    assert (record["status"], record["reason"], record["results"]) == (status, reason, kept)


def test_peers_without_an_environment_are_left_out():
    given = benchmarks.peer_arguments(arguments(), ["peer-environment"])
    assert given[given.index("--only") + 1 :] == ["guide"]
    all_of_them = benchmarks.peer_arguments(arguments(), [peer.environment for peer in PEERS])
    assert all_of_them[all_of_them.index("--only") + 1 :] == [peer.name for peer in PEERS]


def test_an_environment_that_pip_cannot_make_is_told(monkeypatch, tmp_path):
    def fails(environment, *_):
        raise OSError("no network")

    monkeypatch.setattr(benchmarks, "peer_python", fails)
    problems = benchmarks.make_environments(tmp_path)
    assert problems.keys() == {peer.environment for peer in PEERS}
    assert all("no network" in problem for problem in problems.values())


def test_a_peer_that_was_not_measured_has_its_reason_in_the_table():
    rows = [{"what": "step", "against": "keras-hub", "problem": "left out"}]
    assert "| step | 8 | keras-hub | not measured: left out |" in peers_table({"batch_size": 8, "rows": rows})


@pytest.mark.slow
def test_a_side_that_ends_says_its_last_words_and_a_silent_one_is_ended():
    dying = Side([sys.executable, "-c", "raise ValueError('no such model')"])
    with pytest.raises(RuntimeError, match="no such model"):
        dying.ask("full", 1)
    dying.close()
    silent = Side([sys.executable, "-c", "import time; time.sleep(60)"], limit=0.5)
    with pytest.raises(RuntimeError, match="no answer in"):
        silent.ask("full", 1)
    silent.close()


@pytest.mark.slow
def test_what_a_library_prints_is_no_answer():
    program = (
        "from benchmarks.side import serve\n"
        "serve(lambda what, count: print('noise') or 0.5 * count, {'versions': lambda: {'jax': '1'}})"
    )
    side = Side([sys.executable, "-c", program])
    assert side.ask("full", 3) == {"seconds": 1.5}
    assert side.ask("versions", 0) == {"jax": "1"}
    side.close()


@pytest.mark.slow
def test_one_benchmark_gives_files_of_results(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["all", "--quick", "--here", "--only", "bench", "--output", str(tmp_path)])
    benchmarks.main()
    (file,) = tmp_path.glob("*.json")
    (record,) = json.loads(file.read_text(encoding="utf-8"))["benchmarks"]
    assert record["status"] == "done"
    assert "bounds it" in file.with_suffix(".md").read_text(encoding="utf-8")
