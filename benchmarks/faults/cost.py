"""What saving each minute takes of training, and what hashing takes."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

PARAMETERS, LEAVES = 86_000_000, 150  # of a ViT-B/16
_SAVES = 3
_BETWEEN = 60.0  # seconds between two saves


def measure(folder: Path) -> dict[str, Any]:
    """All of a ViT-B learns, by AdamW: its parameters, and two moments of each.

    ``share`` is what training waits, of a minute; ``share_at_worst`` adds what is written beside it, as if that took
    every core of the host.
    """
    import jax
    import jax.numpy as jnp

    from finetune.checkpoint import RunCheckpoints
    from finetune.trees import hash_array

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "state").mkdir(parents=True)
    variables, mu, nu = ({str(i): _leaf(i, name) for i in range(LEAVES)} for name in range(3))
    variables, state = jax.tree.map(jnp.asarray, ({"params": variables}, {"opt_state": {"mu": mu, "nu": nu}}))
    del mu, nu
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((variables, state)))
    stalls, whole = [], []
    with RunCheckpoints(folder / "state") as checkpoints:
        for step in range(1, _SAVES + 1):
            began = time.perf_counter()
            checkpoints.save(step, variables, state, {"step": step})
            stalls.append(time.perf_counter() - began)
            checkpoints.wait()
            whole.append(time.perf_counter() - began)
    began = time.process_time()  # of the processor, which others may use too
    for leaf in jax.tree.leaves((variables, state)):
        hash_array(leaf)
    hashing = (time.process_time() - began) / (size / 1e9)
    shutil.rmtree(folder)
    stall, seconds = statistics.median(stalls), statistics.median(whole)
    return {
        "bytes": size,
        "stall_seconds": stall,
        "seconds_until_saved": seconds,
        "share": stall / _BETWEEN,
        "share_at_worst": seconds / _BETWEEN,
        "hash_seconds_per_gb": hashing,
        "load": os.getloadavg()[0],
    }


def _leaf(index: int, kind: int) -> Any:
    return np.random.default_rng((index, kind)).standard_normal(PARAMETERS // LEAVES, np.float32)
