"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from paths import ROOT, SMALL

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """So that no test, and no process that one starts, knows images from an earlier time."""
    os.environ["FINETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference checkpoints and data that are not part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "goldens").is_dir():
        pytest.skip("needs the reference checkpoints in ../shared, which are not part of this repository")
    return folder


@pytest.fixture(scope="session")
def goldens(shared: Path) -> Path:
    return shared / "goldens"


@pytest.fixture(scope="session")
def tiny_clip():
    import finetune

    return finetune.load_backbone("builtin:tiny-clip")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory):
    """A finished run of ``small.yaml``."""
    import finetune

    return finetune.run(finetune.load_recipe(SMALL), output=tmp_path_factory.mktemp("small") / "run", quiet=True)
