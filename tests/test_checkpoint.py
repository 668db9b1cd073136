"""Saved states: what is damaged is noticed, wherever it is."""

import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.checkpoint import RunCheckpoints
from finetune.errors import CheckpointError

Moments = namedtuple("Moments", "count mu")
VARIABLES = {"params": {"kernel": jnp.arange(600.0).reshape(20, 30), "bias": jnp.ones(3, jnp.bfloat16)}}
STATE = {"opt_state": (Moments(jnp.int32(3), {"kernel": jnp.ones((20, 30))}), ()), "step": jnp.int32(7)}
PROGRESS = {"stage": 1, "results": [{"accuracy": 0.1 + 0.2, "nothing": None}], "names": ["ä"]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "state"
    with RunCheckpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, VARIABLES, STATE, PROGRESS)
    return folder


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_what_was_saved_is_restored_and_the_newest_two_are_kept(saved):
    with RunCheckpoints(saved, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        checkpoints.verify(3)
        assert equal(checkpoints.variables(3), VARIABLES)
        assert equal(checkpoints.state(3, STATE), STATE)
        assert checkpoints.progress(3) == PROGRESS


@pytest.mark.slow
def test_every_flipped_bit_and_every_truncation_is_noticed_or_changes_nothing(saved, tmp_path):
    rng, noticed = np.random.default_rng(0), 0
    files = sorted(path for path in (saved / "3").rglob("*") if path.is_file())
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(saved / "3", folder / "3")
        file = folder / "3" / files[number % len(files)].relative_to(saved / "3")
        data = bytearray(file.read_bytes())
        place = int(rng.integers(len(data)))
        if number % 3:
            data[place] ^= 1 << int(rng.integers(8))
        else:
            del data[place:]
        file.write_bytes(data)
        with RunCheckpoints(folder, read_only=True) as checkpoints:
            try:
                checkpoints.verify(3)
                restored = checkpoints.variables(3), checkpoints.state(3, STATE), checkpoints.progress(3)
            except CheckpointError:
                noticed += 1
            else:
                assert equal(restored[:2], (VARIABLES, STATE)), file
                assert restored[2] == PROGRESS, file
    assert noticed > 20


def test_a_state_without_digests_is_not_trusted(saved, tmp_path):
    shutil.copytree(saved / "3", tmp_path / "3")
    shutil.rmtree(tmp_path / "3" / "manifest")
    with (
        RunCheckpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match="cannot be restored"),
    ):
        checkpoints.variables(3)
