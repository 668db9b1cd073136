"""Fixtures that several rooms share, and what makes the suite quick."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock
from hub_server import Hub
from paths import ROOT, SMALL

# A suite without a cache spends its time on compilation. So programs are compiled once for all tests, their processes
# and the next start, without XLA's costly optimizations. Set XLA_FLAGS="" to compile as users do.
_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):  # later ones do not know it, and XLA ends at a flag that it does not know
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"  # the simpler code generator takes a third of the time
_FAST = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "XLA_FLAGS": _FLAGS,
    "HF_HUB_OFFLINE": "1",
}
for _name, _value in _FAST.items():
    os.environ.setdefault(_name, _value)


# CI has to end in time on slow machines too: with TESTS_END, a time in seconds since 1970, no test begins after it, and
# the summary says how many were left out. Which ones differs from commit to commit, by TESTS_ORDER.
_END = float(os.environ.get("TESTS_END", "inf"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if order := os.environ.get("TESTS_ORDER"):  # of files, since a file's tests share fixtures
        items.sort(key=lambda item: hashlib.sha256(f"{order} {item.path.name}".encode()).digest())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    if time.time() > _END:
        pytest.skip("no time is left for it (TESTS_END)")


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


@pytest.fixture
def hub():
    """A hub on the loopback, which tests fill."""
    hub = Hub()
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture(scope="session")
def tiny_clip():
    import finetune

    return finetune.load_backbone("builtin:tiny-clip")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str):
    """``once(name, make)``: a folder that ``make(folder)`` has filled, once for all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()

    def fill(name: str, make: Callable[[Path], object]) -> Path:
        folder = (base if worker_id == "master" else base.parent) / name
        with FileLock(f"{folder}.lock"):
            if not (folder / "made").is_file():
                folder.mkdir(exist_ok=True)
                make(folder)
                (folder / "made").touch()
        return folder

    return fill


@pytest.fixture(scope="session")
def small_run(once):
    """A finished run of ``small.yaml``. Tests do not change it."""
    import finetune
    from finetune.folder.run_folder import RunFolder
    from finetune.run.result import RunResult

    def make(folder: Path) -> None:
        finetune.run(finetune.load_recipe(SMALL), output=folder / "small_run", quiet=True)

    folder = once("small", make) / "small_run"
    return RunResult(folder, RunFolder(folder).summary())  # a test may have it in use: it is one process's at a time
