"""The saved states of a run: the primary process alone reads and writes them, for all."""

from __future__ import annotations

from typing import Any

import jax

from finetune.checkpoint import RunCheckpoints
from finetune.distributed.processes import arrays_from_primary, from_primary, process_count
from finetune.distributed.sharding import Placement
from finetune.trees import fetch


class SharedCheckpoints:
    """Every process calls each method; their arguments and errors are those of :class:`RunCheckpoints`.

    Attributes:
        own: the saved states; None on all processes but the primary one.
    """

    def __init__(self, own: RunCheckpoints | None, placement: Placement) -> None:
        self.own, self._placement = own, placement

    @property
    def busy(self) -> bool:
        """Whether this process writes one."""
        return self.own is not None and self.own.busy

    def steps(self) -> list[int]:
        return list(from_primary(lambda: self._primary.steps()))

    def save(self, step: int, variables: Any, state: Any, progress: dict[str, Any], score: float | None = None) -> None:
        if process_count() > 1:
            variables, state = jax.tree.map(fetch, (variables, state))
        if self.own is not None:
            self.own.save(step, variables, state, progress, score)

    def variables(self, step: int) -> dict[str, Any]:
        """On the run's devices."""
        variables = arrays_from_primary(lambda: self._primary.variables(step))
        return variables if process_count() == 1 else self._placement.put(variables)

    def state(self, step: int, like: Any) -> Any:
        """On the run's devices."""
        if process_count() == 1:
            return self._primary.state(step, like)
        structure = jax.tree.structure(like)
        leaves = arrays_from_primary(lambda: _numbered(self._primary.state(step, like)))
        return self._placement.put(jax.tree.unflatten(structure, [leaves[str(i)] for i in range(len(leaves))]))

    def wait(self) -> None:
        if self.own is not None:
            self.own.wait()

    @property
    def _primary(self) -> RunCheckpoints:
        assert self.own is not None
        return self.own


def _numbered(tree: Any) -> dict[str, Any]:
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
