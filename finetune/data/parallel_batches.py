"""Batches whose parts are made side by side, so that memory is that of a few batches for any number of workers."""

from __future__ import annotations

import re
import signal
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from absl import flags

from finetune.data.workers import check_workers, follow_parent, stop_signals_blocked, thread_count
from finetune.errors import DataError

Part = dict[str, Any]  # arrays, or lists of arrays, with a row for each example
_DIED = re.compile(r"Worker process was terminated unexpectedly with exit code -(\d+)")  # as Grain says it
_CAUSES = {
    signal.SIGKILL: "often for want of memory: set fewer workers or a smaller batch_size",
    signal.SIGBUS: "shared memory (/dev/shm) is full: give it more, as by docker run --shm-size, or num_workers: 0",
}


class ParallelBatches:
    """An iterator over batches, in order.

    Each thread or process makes one part of every batch, and the parts are joined here. Threads are at most a batch
    and a half ahead, processes about four batches, together.
    """

    def __init__(self, make: Callable[[int, int], Part], length: int, batch_size: int, num_workers: int = 0) -> None:
        """
        Args:
            make: (start, stop) -> the part with the examples from start to before stop. It is pickled for processes.
            length: number of examples; the last batch has what is left.
            num_workers: processes; 0 makes the parts in threads.

        Raises:
            RecipeError: there are more processes than processors.
        """
        if num_workers:
            check_workers(num_workers)
        self._parts = _Parts(make, length, batch_size, num_workers or thread_count())
        self._num_workers = num_workers
        self._position = 0
        self._running: list[grain.DatasetIterator] = []  # one, or none before the first batch
        weakref.finalize(self, _end, self._running)  # at the program's end, too

    def __iter__(self) -> ParallelBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        count = self._parts.count_of(self._position)
        if not count:
            self.close()
            raise StopIteration
        try:
            parts = [self._next_part() for _ in range(count)]
        except BaseException as error:
            self.close()
            if died := _DIED.search(str(error)):
                raise DataError(_describe_death(int(died[1]))) from None
            raise
        self._position += 1
        return _join(parts)

    def get_state(self) -> dict[str, int]:
        """The position: the number of batches taken, whatever makes them."""
        return {"next_index": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._position = state["next_index"]

    def close(self) -> None:
        """Ends threads and processes. Taking a further batch would start new ones."""
        _end(self._running)

    def _next_part(self) -> Part:
        if self._running:
            return next(self._running[0])
        parts = grain.MapDataset.source(self._parts.of_batches_from(self._position))
        if not self._num_workers:
            self._running.append(_in_threads(parts, self._parts.in_batch))
            return next(self._running[0])
        self._running.append(_in_processes(parts, self._num_workers))
        with ThreadPoolExecutor(1) as pool:  # a thread that starts the processes, while signals come through here
            with stop_signals_blocked():
                first = pool.submit(next, self._running[0])
            return first.result()


def _end(running: list[grain.DatasetIterator]) -> None:
    while running:
        running.pop().close()


class _Parts:
    """The parts of all batches as a source for Grain."""

    def __init__(
        self, make: Callable[[int, int], Part], length: int, batch_size: int, makers: int, first: int = 0
    ) -> None:
        self._make, self._length, self._batch_size, self._makers = make, length, batch_size, makers
        self._size = -(-batch_size // makers)  # examples of a part
        self.in_batch = -(-batch_size // self._size)  # parts of a batch
        self._first = first  # batch

    def of_batches_from(self, first: int) -> _Parts:
        return _Parts(self._make, self._length, self._batch_size, self._makers, first)

    def count_of(self, batch: int) -> int:
        """Parts of one batch; 0 behind the last."""
        examples = min(self._batch_size, max(0, self._length - batch * self._batch_size))
        return -(-examples // self._size)

    def __len__(self) -> int:
        whole = self._length // self._batch_size
        return (whole - self._first) * self.in_batch + self.count_of(whole)

    def __getitem__(self, index: int) -> Part:
        batch, part = divmod(index, self.in_batch)
        start = (self._first + batch) * self._batch_size
        stop = min(start + self._batch_size, self._length)
        start += part * self._size
        return self._make(start, min(start + self._size, stop))


def _in_threads(parts: grain.MapDataset, in_batch: int) -> grain.DatasetIterator:
    ahead = in_batch + -(-in_batch // 2)
    return iter(parts.to_iter_dataset(grain.ReadOptions(num_threads=in_batch, prefetch_buffer_size=ahead)))


def _in_processes(parts: grain.MapDataset, num_workers: int) -> grain.DatasetIterator:
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags, which only absl's own programs parse
        flags.FLAGS.mark_as_parsed()
    in_turn = parts.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=1)
    return iter(in_turn.mp_prefetch(options, worker_init_fn=follow_parent))


def _join(parts: list[Part]) -> dict[str, Any]:
    """The parts as one batch, without what is shared with another process."""
    return {
        name: [_concatenate(arrays) for arrays in zip(*(part[name] for part in parts), strict=True)]
        if isinstance(parts[0][name], list)
        else _concatenate([part[name] for part in parts])
        for name in parts[0]
    }


def _concatenate(arrays: Any) -> np.ndarray:
    return np.concatenate([np.asarray(array) for array in arrays])


def _describe_death(number: int) -> str:
    name, cause = signal.Signals(number).name, _CAUSES.get(signal.Signals(number))
    advice = cause or "set num_workers: 0 to see why"
    return f"data.num_workers: a worker process was ended by {name}: {advice}; then continue with --resume"
