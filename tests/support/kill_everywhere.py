"""A process of its own that kills others at every file operation: ``python kill_everywhere.py SCENE FOLDER``.

Each is a fork, which does one thing to a folder and is killed by SIGKILL before its n-th operation, for every n. Then
what is there has to be whole, and every command has to go on from it. It ends with the number of kills, or an error.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run_folders import make_run, start, tree

from finetune.checkpoint import find_bundle
from finetune.errors import CheckpointError
from finetune.files import folder_written_atomically
from finetune.folder.run_folder import RunFolder

_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def kill_at(number: int) -> None:
    """From now on, this process ends before its n-th change of a file or folder."""
    left = number

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in _CHANGES or event == "fcntl.flock" or (event == "open" and arguments[2] & _WRITES):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def was_killed(number: int, work: Callable[..., None], *arguments: Any, **options: Any) -> bool:
    """Runs something in a process that is killed at its n-th operation; False where it has fewer."""
    pid = os.fork()
    if pid == 0:
        kill_at(number)
        work(*arguments, **options)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"failed at {number}"
    return os.WIFSIGNALED(status)


def begin(directory: Path, seed: int, *, resume: bool = False, overwrite: bool = False) -> None:
    """What ``finetune run`` does to a folder before it trains."""
    folder = RunFolder(directory)
    with folder.reserve("test", resume=resume, overwrite=overwrite):
        if not (resume and folder.holds_run()):
            start(folder, seed, overwrite=overwrite)


def seed_in(directory: Path) -> int:
    """That of the whole run in a folder."""
    folder = RunFolder(directory)
    seed = folder.about()["seed"]
    assert folder.recipe().seed == seed
    assert (directory / "skipped_images.txt").is_file()
    return seed


def check(scene: Path, old: dict[str, bytes] | None) -> None:
    """Whatever was killed in a scene, each command finds a whole run or none, and goes on."""
    for command in ("run", "resume", "overwrite"):
        copy = scene.with_name(command)
        shutil.copytree(scene, copy)
        directory = copy / "run"
        try:
            begin(directory, 3, resume=command == "resume", overwrite=command == "overwrite")
        except CheckpointError as error:
            if command != "run" or "already holds a run" not in str(error):
                raise
            begin(directory, 3, resume=True)
        seed = seed_in(directory)
        if command == "overwrite":
            assert seed == 3
        elif old:
            assert seed in (1, 2), "neither the old run nor the new one"
        if seed == 1:
            assert tree(directory) == old
        else:
            assert sorted(os.listdir(directory)) == ["recipe.yaml", "run.json", "skipped_images.txt"]
        assert os.listdir(copy) == ["run"], os.listdir(copy)
        shutil.rmtree(copy)


def kill_starts(home: Path, *, empty: bool) -> int:
    for number in range(1000):
        scene = home / "scene"
        (scene / "run").mkdir(parents=True) if empty else scene.mkdir(parents=True)
        killed = was_killed(number, begin, scene / "run", 2)
        check(scene, None)
        shutil.rmtree(scene)
        if not killed:
            return number
    raise AssertionError("it never ended")


def kill_overwrites(home: Path) -> int:
    for number in range(1000):
        scene = home / "scene"
        make_run(scene / "run", 1)
        old = tree(scene / "run")
        killed = was_killed(number, begin, scene / "run", 2, overwrite=True)
        check(scene, old)
        shutil.rmtree(scene)
        if not killed:
            return number
    raise AssertionError("it never ended")


def kill_twice(home: Path) -> int:
    """An overwrite, and then the one that mends it."""
    rng = random.Random(0)
    for _ in range(60):
        scene = home / "scene"
        make_run(scene / "run", 1)
        old = tree(scene / "run")
        for _ in range(2):
            was_killed(rng.randrange(60), begin, scene / "run", 2, overwrite=True)
        check(scene, old)
        shutil.rmtree(scene)
    return 60


def kill_models(home: Path) -> int:
    """The bundle is replaced: it is the old one or the new one for who reads, and in its place for who resumes."""

    def write(directory: Path) -> None:
        with folder_written_atomically(directory) as folder:
            (folder / "weights").mkdir()
            for name in ("weights/manifest.ocdbt", "model.json"):
                (folder / name).write_text("new")

    new = {"weights": b"", "weights/manifest.ocdbt": b"new", "model.json": b"new"}
    for number in range(1000):
        directory = home / "scene" / "run"
        make_run(directory, 1)
        old = tree(directory / "model")
        killed = was_killed(number, write, directory / "model")
        for asked in (directory, directory / "model"):
            bundle = find_bundle(asked)
            assert bundle is not None
            assert tree(bundle) in (old, new)
        with RunFolder(directory).reserve("test", resume=True):
            assert tree(directory / "model") in (old, new)
        assert [name for name in os.listdir(directory) if name.startswith("model")] == ["model"]
        shutil.rmtree(home / "scene")
        if not killed:
            return number
    raise AssertionError("it never ended")


SCENES = {
    "start": lambda home: kill_starts(home, empty=False),
    "start_in_an_empty_folder": lambda home: kill_starts(home, empty=True),
    "overwrite": kill_overwrites,
    "overwrite_twice": kill_twice,
    "model": kill_models,
}

if __name__ == "__main__":
    print(SCENES[sys.argv[1]](Path(sys.argv[2])))
