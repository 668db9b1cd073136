"""Folders at URLs: whole or not at all, and fetched once."""

import json
import os
import subprocess

import fsspec
import numpy as np
import pytest
from bundles import BUNDLES, CURRENT, copy_bundle
from command_line import FINETUNE
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import finetune
from finetune.errors import CheckpointError
from finetune.files import hash_json
from finetune.remote import fetch, is_url, local_folder, push_to_url


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return tmp_path / "cache" / "remote"


@pytest.fixture
def folder(tmp_path):
    """A small run; its name is not plain."""
    folder = tmp_path / "a run é"
    (folder / "model" / "weights").mkdir(parents=True)
    (folder / "state" / "7").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "model" / "model.json").write_text('{"format": 5}')
    (folder / "model" / "weights" / "d#1 é").write_bytes(b"12345")
    (folder / "state" / "7" / "big").write_bytes(bytes(1000))
    return folder


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    return "memory://bucket/run" if request.param == "memory" else f"file://{tmp_path}/bucket/run"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder, url):
    """As any program copies a folder, without a manifest."""
    files, root = fsspec.url_to_fs(url)
    for path, data in contents(folder).items():
        files.makedirs(os.path.dirname(f"{root}/{path}"), exist_ok=True)
        files.pipe_file(f"{root}/{path}", data)


def test_what_is_pushed_is_fetched_once(folder, url, cache):
    digest = push_to_url(folder, url)
    copy = fetch(url)
    assert contents(copy) == contents(folder)
    assert copy == cache / digest
    stamp = copy.stat().st_mtime_ns
    assert fetch(url) == copy
    assert copy.stat().st_mtime_ns == stamp
    assert [path.name for path in cache.iterdir()] == [digest]


def test_a_newer_folder_is_another_one_and_replaces_the_older(folder, url):
    push_to_url(folder, url)
    first = fetch(url)
    (folder / "run.json").write_text('{"newer": true}')
    (folder / "model" / "weights" / "d#1 é").unlink()
    newer = push_to_url(folder, url)
    assert fetch(url) != first
    assert contents(fetch(url)) == contents(folder)
    files, root = fsspec.url_to_fs(url)
    assert {name.rstrip("/").split("/")[-1] for name in files.ls(root, detail=False)} == {"manifest.json", newer}


def test_the_same_folder_may_be_pushed_again(folder, url):
    assert push_to_url(folder, url) == push_to_url(folder, url)
    assert contents(fetch(url)) == contents(folder)


@pytest.mark.parametrize("copied", [push_to_url, put])
def test_what_is_not_needed_is_not_fetched(folder, url, copied):
    copied(folder, url)
    everything = contents(fetch(url))
    needed = contents(fetch(url, skip=["state"]))
    assert needed == {path: data for path, data in contents(folder).items() if not path.startswith("state")}
    assert everything == contents(folder)


def test_a_push_that_is_cut_off_leaves_what_was_there(folder, monkeypatch):
    url = "memory://bucket/run"
    push_to_url(folder, url)
    before = contents(folder)
    (folder / "run.json").write_text('{"newer": true}')
    put_file = MemoryFileSystem.put_file

    def fail(self, source, target, **options):
        if target.endswith("run.json"):
            raise OSError("connection lost")
        return put_file(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", fail)
    with pytest.raises(CheckpointError, match="memory://bucket/run: cannot be written: connection lost"):
        push_to_url(folder, url)
    assert contents(fetch(url)) == before
    monkeypatch.undo()


@pytest.mark.parametrize("data", [b"12344", b"123", b"123456", b""])
def test_a_damaged_copy_is_no_copy(folder, data, cache):
    digest = push_to_url(folder, "memory://bucket/run")
    fsspec.filesystem("memory").pipe_file(f"/bucket/run/{digest}/model/weights/d#1 é", data)
    with pytest.raises(CheckpointError, match="d#1 é(:)? is not (what was written|of 5 bytes)"):
        fetch("memory://bucket/run")
    assert list(cache.iterdir()) == []


def test_a_file_that_is_gone_is_named(folder):
    digest = push_to_url(folder, "memory://bucket/run")
    fsspec.filesystem("memory").rm(f"/bucket/run/{digest}/run.json")
    with pytest.raises(CheckpointError, match="not all of it is there: .*run.json"):
        fetch("memory://bucket/run")


HOSTILE = {
    "../../escaped": "names a file outside",
    "/etc/passwd": "names a file outside",
    "a//b": "names a file outside",
    "a/../../b": "names a file outside",
    "..\\b": "names a file outside",
}


@pytest.mark.parametrize("path", HOSTILE)
def test_a_manifest_names_files_inside_the_folder_only(path):
    manifest = {"format": 1, "files": {path: {"size": 1, "sha256": "0" * 64}}}
    text = json.dumps({**manifest, "sha256": hash_json(manifest)})
    fsspec.filesystem("memory").pipe_file("/bucket/run/manifest.json", text.encode())
    with pytest.raises(CheckpointError, match=HOSTILE[path]):
        fetch("memory://bucket/run")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 1, "files": {}, "sha256": "0"}', '{"format": 1, "files"', "\0"]
)
def test_a_damaged_manifest_is_one_message(text):
    fsspec.filesystem("memory").pipe_file("/bucket/run/manifest.json", text.encode())
    with pytest.raises(CheckpointError, match=r"memory://bucket/run: its manifest.json cannot be used"):
        fetch("memory://bucket/run")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere/run", "no run and no model bundle there"),
        ("nosuch://bucket/run", "nosuch://bucket/run: Protocol not known: nosuch"),
        ("simplecache::memory://bucket/run", "one place, without '::'"),
    ],
)
def test_what_is_not_there_is_one_message(url, message):
    with pytest.raises(CheckpointError, match=message):
        fetch(url)


def test_links_are_not_pushed(folder):
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="link: neither a file nor a folder"):
        push_to_url(folder, "memory://bucket/run")
    assert not fsspec.filesystem("memory").exists("/bucket/run/manifest.json")


def test_paths_are_no_urls(tmp_path):
    assert not any(map(is_url, ["runs/a", "/a://b", "C:\\runs", "a:b", tmp_path]))
    assert all(map(is_url, ["s3://bucket/run", "gs://b", "memory://x", "file:///tmp/x", "https://example.org/run"]))
    assert local_folder(tmp_path) == tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("copied", [push_to_url, put])
def test_a_bundle_at_a_url_predicts_as_it_does_here(copied, cache):
    copied(CURRENT, "memory://bucket/model")
    images = np.random.default_rng(0).integers(0, 256, (3, 11, 13, 3), dtype=np.uint8)
    expected = finetune.restore(CURRENT).predict_proba(images)
    np.testing.assert_array_equal(finetune.restore("memory://bucket/model").predict_proba(images), expected)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.slow
def test_a_bundle_that_was_damaged_at_its_url_is_not_used(tmp_path):
    other = copy_bundle(tmp_path / "other", BUNDLES / "format-4-labels")
    put(other, "memory://bucket/model")
    largest = max((CURRENT / "weights" / "d").iterdir(), key=lambda path: path.stat().st_size)
    for path in fsspec.filesystem("memory").find("/bucket/model/weights/d"):
        fsspec.filesystem("memory").pipe_file(path, largest.read_bytes())
    with pytest.raises(CheckpointError):
        finetune.restore("memory://bucket/model")


@pytest.mark.slow
def test_the_command_line_takes_urls(small_run, tmp_path):
    url = f"file://{tmp_path}/bucket/run"
    push_to_url(small_run.directory, url)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    for command in (["predict", url, tmp_path / "red.png"], ["evaluate", url]):
        here = subprocess.run(
            [*FINETUNE, *map(str, [command[0], small_run.directory, *command[2:]]), "--json"], capture_output=True
        )
        there = subprocess.run([*FINETUNE, *map(str, command), "--json"], capture_output=True)
        assert there.returncode == 0, there.stderr
        assert json.loads(there.stdout) == json.loads(here.stdout)
    copy = next((tmp_path / "cache" / "remote").iterdir())
    assert not (copy / "state").exists()
