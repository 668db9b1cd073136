import os
import re
import subprocess
import sys

import pytest

from finetune.data import workers
from finetune.data.workers import check_workers, map_in_threads, thread_count, usable_cpus
from finetune.errors import RecipeError

CHECK = "from finetune.data.workers import check_workers\n"


def test_more_workers_than_processors_are_refused():
    with pytest.raises(
        RecipeError, match=f"100000 is more than the {usable_cpus()} processors .*at most {usable_cpus()}"
    ):
        check_workers(100_000)


def test_processors_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert (usable_cpus(), thread_count()) == (1, 1)
    with pytest.raises(RecipeError, match="2 is more than the 1 processor"):
        check_workers(2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(192)))
    assert (usable_cpus(), thread_count()) == (192, 16)
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert usable_cpus() == os.cpu_count()


def test_a_map_in_threads_keeps_the_order_and_is_only_a_little_ahead(monkeypatch):
    monkeypatch.setattr(workers, "thread_count", lambda: 2)
    begun = []
    results = map_in_threads(lambda i: begun.append(i) or i * i, 1000)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(begun) < 20
    results.close()
    assert len(begun) < 20
    assert list(map_in_threads(lambda i: i, 3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        ("check_workers(1)", True),
        ("def main():\n    check_workers(1)\nmain()", True),
        ("if __name__ == '__main__':\n    check_workers(1)", False),
        ("def main():\n    check_workers(1)\nif '__main__' == __name__:\n    main()", False),
        ("for _ in range(1):\n    check_workers(1)", True),
    ],
)
def test_a_script_that_would_run_again_in_each_worker_is_named_with_its_line(tmp_path, script, refused):
    (tmp_path / "script.py").write_text(CHECK + script)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 1) == refused, done.stderr
    if refused:
        assert re.search(r"/script\.py:[234] would run once more in each", done.stderr)
        assert '__name__ == "__main__"' in done.stderr


def test_a_session_without_a_file_needs_no_guard():
    subprocess.run([sys.executable, "-c", CHECK + "check_workers(1)"], check=True)
