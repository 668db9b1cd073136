"""One process of several that add up a number over and over: psum_loop.py COORDINATOR COUNT INDEX [HOW IT ENDS]."""

import sys
import time

from finetune.distributed.membership import join_processes, member
from finetune.distributed.processes import any_process, process_count, process_index
from finetune.errors import FinetuneError, Interrupted
from finetune.foreign_errors import foreign_errors_translated
from finetune.signals import own_process


def compute(how: str) -> None:
    index = process_index()
    print(f"{index} of {process_count()}", flush=True)
    if how == "apart":  # no collective says that another is gone
        time.sleep(60)
    end = time.time() + (60 if how in ("", "own member") else 1)
    while not any_process(time.time() > end):
        pass
    if how == "error" and index == 1:
        raise FinetuneError("a mistake of process 1")
    if how == "bug" and index == 1:
        raise ZeroDivisionError("a bug of process 1")
    if how == "interrupted":
        time.sleep(4 * (index == 0))  # the primary has to save
        raise Interrupted("SIGTERM at step 7", 15)
    if how == "late":
        time.sleep(3 * (index == 0))
    if how in ("error", "bug"):
        any_process(False)


def main() -> None:
    coordinator, count, index, *how = sys.argv[1:]
    own_process()
    try:
        with foreign_errors_translated():
            if how == ["own member"]:
                import jax

                jax.distributed.initialize(coordinator, int(count), int(index))
                with member():
                    compute(*how)
            else:
                with join_processes(coordinator, int(count), int(index), timeout=60, heartbeat=10), member():
                    compute(*how or [""])
    except FinetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print("done")


if __name__ == "__main__":
    main()
