import os
import re
import subprocess
import sys

import pytest

from finetune.data.workers import check_workers
from finetune.errors import RecipeError

CHECK = "from finetune.data.workers import check_workers\n"


def test_more_workers_than_processors_are_refused():
    with pytest.raises(RecipeError, match=f"choose at most {os.cpu_count()}|at most {os.cpu_count()}"):
        check_workers(100_000)


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
