"""The processes of a run: which one this is, and what they have to agree on.

All is JAX's own: ``jax.distributed`` makes the processes one, and each agreement is a collective of it. Every process
has to come to each of them, in the same order. In a run of one process they cost nothing and do not import JAX.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from finetune.errors import CheckpointError, FinetuneError, listed


def process_count() -> int:
    """How many processes run together; 1 where ``jax.distributed`` was not started."""
    return _jax().process_count() if _started() else 1


def process_index() -> int:
    """Which of them this one is, from 0."""
    return _jax().process_index() if _started() else 0


def is_primary() -> bool:
    """Whether this process is the one that decides, writes and prints: process 0."""
    return process_index() == 0


def broadcast(value: Any) -> Any:
    """The primary process's value, on every process.

    Args:
        value: JSON; what the others give is not looked at.
    """
    if process_count() == 1:
        return json.loads(json.dumps(value))  # a tuple is a list on every process, or on none
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    data = json.dumps(value).encode() if is_primary() else b""
    size = int(broadcast_one_to_all(np.int32(len(data))))
    return json.loads(broadcast_one_to_all(_padded(data, size)).tobytes()[:size])


def gather_json(value: Any) -> list[Any]:
    """The values (JSON) of all processes, in their order, on every process."""
    if process_count() == 1:
        return [json.loads(json.dumps(value))]
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    data = json.dumps(value).encode()
    sizes = process_allgather(np.int32(len(data)))
    rows = process_allgather(_padded(data, int(sizes.max())))
    return [json.loads(row.tobytes()[:size]) for row, size in zip(rows, sizes, strict=True)]


def any_process(flag: bool) -> bool:
    """Whether it is true on at least one process: all get the same answer."""
    if process_count() == 1:
        return bool(flag)
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    return bool(process_allgather(np.bool_(flag)).any())


def check_alike(name: str, value: Any) -> None:
    """Makes sure that a value (JSON, such as a hash) is the same on all processes.

    Args:
        name: what it is, for the message: "the recipe", "the images".

    Raises:
        FinetuneError: on every process, naming those that differ from the primary.
    """
    values = gather_json(value)
    others = [str(index) for index, other in enumerate(values) if other != values[0]]
    if others:
        raise FinetuneError(
            f"{name}: not the same on process{'es' if len(others) > 1 else ''} {listed(others)} of {len(values)} as on "
            f"process 0 ({_short(values[int(others[0])])}, and {_short(values[0])}); give all processes the same"
        )


def from_primary(make: Callable[[], Any]) -> Any:
    """What a function gives on the primary process, where alone it is called: JSON, on every process."""
    if process_count() == 1:
        return make()
    return broadcast(make() if is_primary() else None)


def arrays_from_primary(make: Callable[[], Any]) -> Any:
    """The same of nested dicts of arrays, which are on the host of every process.

    Raises:
        CheckpointError: on every process, where the function raises it.
    """
    if process_count() == 1:
        return make()
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    from finetune.trees import fetch, flatten, unflatten

    leaves: dict[str, Any] = {}
    described: dict[str, Any] = {}
    if is_primary():
        try:
            leaves = {path: fetch(leaf) for path, leaf in flatten(make()).items()}
            described["arrays"] = {path: [list(leaf.shape), leaf.dtype.name] for path, leaf in leaves.items()}
        except CheckpointError as error:
            described["error"] = str(error)
    described = broadcast(described)
    if "error" in described:
        raise CheckpointError(described["error"])
    result = {}
    for path, (shape, dtype) in described["arrays"].items():
        own = leaves.get(path, np.zeros(shape, np.dtype(dtype)))
        result[path] = np.asarray(broadcast_one_to_all(own))
    return unflatten(result)


class Poll:
    """An agreement that is asked for often, and made about once a second, since it waits for the devices.

    All processes ask equally often.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds, self._since = seconds, time.monotonic()
        self._asked, self._next = 0, 1

    def __call__(self, value: Any) -> list[Any] | None:
        """The values (JSON) of all processes; None where there is no agreement this time."""
        self._asked += 1
        if self._asked < self._next:
            return None
        now = time.monotonic()
        answers = gather_json([value, now - self._since])
        per_second = self._asked / max(answers[0][1], 1e-3)  # as the primary counts
        self._since, self._asked, self._next = now, 0, max(1, int(self._seconds * per_second))
        return [answer for answer, _ in answers]


def _padded(data: bytes, size: int) -> Any:
    """Bytes as uint8 [n], where n is one of few, since each is compiled: a power of two from 256."""
    import numpy as np

    padded = np.zeros(max(256, 1 << (size - 1).bit_length()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return padded


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _started() -> bool:
    return "jax" in sys.modules and bool(_jax().distributed.is_initialized())


def _jax() -> Any:
    import jax

    return jax
