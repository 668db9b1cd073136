"""Fixtures for the models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest


class Stem(nn.Module):
    def setup(self):
        self.conv = nn.Conv(4, (3, 3))
        self.norm = nn.BatchNorm()

    def __call__(self, x, train=False):
        return self.norm(self.conv(x), use_running_average=not train)


class BatchNormNet(nn.Module):
    """Two stages with running statistics; images [N, H, W, 3] to [N, H, W, 5]."""

    def setup(self):
        self.stem = Stem()
        self.top = nn.Dense(5)

    def __call__(self, x, train=False):
        return self.top(nn.relu(self.stem(x, train)))


@pytest.fixture(scope="session")
def batch_norm_net():
    """(module, variables) whose running statistics are not those of a fresh initialization."""
    module = BatchNormNet()
    images = 3 + 2 * jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = jax.jit(module.init)(jax.random.key(0), images)
    _, updated = jax.jit(lambda v: module.apply(v, images, train=True, mutable=["batch_stats"]))(variables)
    return module, {"params": variables["params"], "batch_stats": updated["batch_stats"]}


@pytest.fixture
def copy_golden(goldens: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a reference checkpoint that a test may break."""

    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in (goldens / name).iterdir():
            if file.suffix in {".json", ".safetensors"}:
                shutil.copyfile(file, folder / file.name)
        return folder

    return copy


@pytest.fixture(scope="session")
def images() -> jax.Array:
    """Normalized float32 [6, 32, 32, 3]."""
    return jax.random.normal(jax.random.key(7), (6, 32, 32, 3), jnp.float32)
