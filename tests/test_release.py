"""What is released: an sdist of what the repository holds, and a wheel of what a user needs, the same from both."""

import subprocess
import sys
import tarfile
from email import message_from_bytes
from zipfile import ZipFile

import pytest
from paths import ROOT

import finetune

pytest.importorskip("build", reason="needs build (the extra `dev`)")
pytestmark = pytest.mark.slow
NAME = f"flax_finetune-{finetune.__version__}"


@pytest.fixture(scope="module")
def dist(once):
    """``sdist.tar.gz``'s and its wheel's folder ``from_sdist``, and that of the wheel of the tree, ``from_tree``."""

    def make(folder):
        for options in (["-o", folder / "from_sdist"], ["-o", folder / "from_tree", "--wheel"]):
            command = [sys.executable, "-m", "build", "--installer", "uv", *options, ROOT]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr

    return once("dist", make)


@pytest.fixture(scope="module")
def wheel(dist):
    with ZipFile(dist / "from_sdist" / f"{NAME}-py3-none-any.whl") as file:
        return {name: file.read(name) for name in file.namelist()}


def kept_files(*patterns):
    """What git keeps, or would, of these."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs the git repository")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_the_sdist_is_the_repository(dist):
    with tarfile.open(dist / "from_sdist" / f"{NAME}.tar.gz") as file:
        names = {member.name.removeprefix(f"{NAME}/") for member in file if member.isfile()}
    assert names == {name for name in kept_files(".") if not name.startswith(".ci/")} | {"PKG-INFO"}


def test_the_wheel_is_the_package_with_its_recipes_its_checkpoint_and_its_license(wheel):
    bundled = kept_files("recipes", "checkpoints/tiny-clip")
    expected = kept_files("finetune") | {f"finetune/_bundled/{name}" for name in bundled if not name.endswith(".py")}
    about = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert wheel.keys() == expected | {f"{NAME}.dist-info/{name}" for name in about}
    assert "finetune/py.typed" in wheel
    assert "finetune/_bundled/checkpoints/tiny-clip/model.safetensors" in wheel
    assert wheel[f"{NAME}.dist-info/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_the_sdist_makes_the_wheel_that_the_tree_makes(dist):
    first, second = (dist / place / f"{NAME}-py3-none-any.whl" for place in ("from_sdist", "from_tree"))
    assert first.read_bytes() == second.read_bytes()


def test_the_version_is_the_packages(wheel):
    told = message_from_bytes(wheel[f"{NAME}.dist-info/METADATA"])
    assert told["Version"] == finetune.__version__
    assert told["License-Expression"] == "Apache-2.0"
    assert finetune.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_indexes_will_take_both(dist):
    pytest.importorskip("twine", reason="needs twine (the extra `dev`)")
    files = sorted(map(str, (dist / "from_sdist").iterdir()))
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2
