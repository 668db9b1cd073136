"""How a side of a comparison talks: lines ``what count`` on standard input, each answered with a line of JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def serve(run: Callable[[str, int], float | None], facts: Mapping[str, Callable[[], Any]]) -> None:
    """Answers until standard input ends. What the libraries print goes to standard error.

    Args:
        run: does ``what`` so often and waits for it; may give the seconds itself, where not all of its time counts.
        facts: what is told rather than timed.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        what, count = line.split()
        if what in facts:
            answer = facts[what]()
        else:
            start = time.perf_counter()
            own = run(what, int(count))
            answer = {"seconds": time.perf_counter() - start if own is None else own}
        print(json.dumps(answer), file=answers, flush=True)


def versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}
