"""Bundles on a hub: pushed to one on loopback, and loaded back by id."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from bundles import CURRENT, copy_bundle
from hub_server import environment as hub_environment
from PIL import Image

import finetune
from finetune.errors import CheckpointError
from finetune.export.push import push_to_hub
from finetune.hub import HubId, read_hub_id


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("me/owls", HubId("me/owls", None)),
        ("me/owls@v1.0", HubId("me/owls", "v1.0")),
        ("me/owls@refs/pr/3", HubId("me/owls", "refs/pr/3")),
        ("owls", None),
        ("me/owls/model", None),
        ("./me/owls", None),
        ("/me/owls", None),
        ("~/owls", None),
        ("me/owls@", None),
        ("../owls", None),
        ("-me/owls", None),
    ],
)
def test_a_hub_id_is_owner_and_name_with_a_revision_or_none(text, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_hub_id(text) == read


def test_a_name_inside_a_folder_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert read_hub_id("checkpoints/none") is None
    with pytest.raises(CheckpointError, match="checkpoints/none: no such folder; give what finetune run wrote"):
        finetune.restore("checkpoints/none")


def test_what_is_no_bundle_or_no_id_is_not_pushed(tmp_path):
    with pytest.raises(CheckpointError, match="no model bundle there; give what finetune run wrote"):
        push_to_hub(tmp_path, "me/owls")
    for name in ("owls", "me/owls/more", "me/", "https://huggingface.co/me/owls", "me/owls@v1"):
        with pytest.raises(CheckpointError, match="not a hub id: give owner/name"):
            push_to_hub(CURRENT, name)


def test_a_link_is_not_pushed_whatever_it_names(tmp_path):
    bundle = copy_bundle(tmp_path / "bundle")
    (bundle / "weights" / "secret").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="secret: a link, which is not pushed"):
        push_to_hub(bundle, "me/owls")


@pytest.fixture
def cli(hub, tmp_path):
    """Runs the command line against the hub, as somebody with a token; gives the process that ended."""

    def cli(*arguments, **environment):
        settings = {**hub_environment(hub, tmp_path), "HF_TOKEN": hub.token, **environment}
        command = [sys.executable, "-m", "finetune.cli", *map(str, arguments)]
        env = {name: value for name, value in settings.items() if value is not None}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return cli


@pytest.fixture
def run_folder(tmp_path):
    """A bundle inside a run's folder, with what must not leave it."""
    folder = tmp_path / "runs" / "owls"
    model = copy_bundle(folder / "model")
    (model / "README.md").write_text('# owls\n\nfinetune.restore("DIR")\n')
    for name in ("recipe.yaml", "run.json", "predictions.parquet", "state/1/data", "model/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("private")
    (model / "weights" / "mine.txt").write_text("private")
    return folder


@pytest.mark.slow
def test_a_pushed_bundle_is_predicted_with_by_its_id(hub, cli, run_folder, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(np.full((12, 12, 3), 128, np.uint8)).save(image)
    done = cli("push", run_folder, "me/owls", "--json")
    assert done.returncode == 0, done.stderr
    pushed = json.loads(done.stdout)
    files = hub.repositories["me/owls"].revisions["main"]
    assert pushed["files"] == len(files) - 1  # and .gitattributes
    assert not [name for name, content in files.items() if content == b"private"]
    assert b'finetune.restore("me/owls")' in files["README.md"]

    local = cli("predict", run_folder, image, "--json")
    for place in ("me/owls", f"me/owls@{pushed['commit']}"):
        assert cli("predict", place, image, "--json").stdout == local.stdout != ""
    hub.requests.clear()
    assert cli("predict", "me/owls", image, "--json", HF_HUB_OFFLINE="1").stdout == local.stdout
    assert not hub.requests


@pytest.mark.slow
def test_only_the_files_of_a_bundle_are_fetched(hub, cli, tmp_path):
    files = {p.relative_to(CURRENT).as_posix(): p.read_bytes() for p in CURRENT.rglob("*") if p.is_file()}
    hub.add("me/owls", {**files, "setup.py": b"code", "data.pkl": b"pickle", "state/1": b"state"})
    done = cli("predict", "me/owls", tmp_path / "none.png")
    assert "none.png" in done.stderr  # so the model was there
    fetched = set(hub.fetched())
    assert {"model.json", "novelty.safetensors"} < fetched
    assert not {name for name in fetched if name.endswith((".py", ".pkl")) or name.startswith("state")}


@pytest.mark.slow
def test_a_second_push_replaces_the_first_at_once(hub, cli, run_folder):
    assert cli("push", run_folder, "me/owls").returncode == 0
    main = hub.repositories["me/owls"].revisions["main"]
    main["weights/d/" + "0" * 32] = b"of an earlier bundle"
    main["LICENSE"] = b"mine"
    assert cli("push", run_folder, "me/owls").returncode == 0
    files = hub.repositories["me/owls"].revisions["main"]
    assert "weights/d/" + "0" * 32 not in files
    assert files["LICENSE"] == b"mine"
    commits = [path for method, path in hub.requests if "/commit/" in path and method == "POST"]
    assert len(commits) == 2


@pytest.mark.slow
def test_a_branch_and_a_private_repository(hub, cli, run_folder):
    done = cli("push", run_folder, "me/owls", "--private", "--revision", "v2")
    assert done.returncode == 0, done.stderr
    assert "finetune predict me/owls@v2 image.png" in done.stdout
    assert hub.repositories["me/owls"].private
    assert "model.json" in hub.repositories["me/owls"].revisions["v2"]
    assert "model.json" not in hub.repositories["me/owls"].revisions["main"]


@pytest.mark.slow
def test_what_the_hub_does_not_take_is_one_message_and_nothing_is_pushed(hub, cli, run_folder, tmp_path):
    hub.add("me/clip", {"config.json": b"{}"})
    hub.add("me/seen", {".gitattributes": b""})
    hub.add("other/owls", {"model.json": b"{}"})
    before = {name: dict(repository.revisions) for name, repository in hub.repositories.items()}
    damaged = tmp_path / "damaged"
    shutil.copytree(run_folder / "model", damaged)
    (damaged / "novelty.safetensors").write_bytes(b"")
    cases = [
        ((run_folder, "me/clip"), {}, "me/clip: holds something that is no bundle (config.json): give another name"),
        ((run_folder, "me/seen", "--private"), {}, "me/seen: is there already, and everyone sees it"),
        ((run_folder, "other/owls"), {}, "other/owls: this account may not write there: it belongs to another"),
        ((run_folder, "me/owls"), {"HF_TOKEN": None}, "me/owls: pushing needs a token: log in (hf auth login)"),
        ((run_folder, "me/owls"), {"HF_TOKEN": "hf_old"}, "me/owls: the hub does not accept the token"),
        ((run_folder, "me/owls"), {"HF_HUB_OFFLINE": "1"}, "me/owls: offline mode is on: unset HF_HUB_OFFLINE"),
        ((run_folder, "me/owls"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "me/owls: the hub cannot be reached"),
        ((damaged, "me/owls"), {}, "novelty.safetensors: "),
        ((tmp_path / "none", "me/owls"), {}, "no model bundle there"),
    ]
    for arguments, environment, message in cases:
        done = cli("push", *arguments, **environment)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert {name: dict(repository.revisions) for name, repository in hub.repositories.items()} == before


@pytest.mark.slow
def test_an_id_that_gives_no_bundle_says_why(hub, cli, tmp_path):
    hub.add("me/clip", {"config.json": b"{}"})
    for place, environment, message in (
        ("me/clip", {}, "me/clip: no model bundle: the repository has no model.json"),
        ("me/none", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "and the hub cannot be reached; check the name"),
        ("me/none", {}, "me/none: the hub has no such repository"),
        (
            "me/clip@v9",
            {},
            "me/clip@v9: the hub has this repository, but no such branch",
        ),
        (
            "me/none",
            {"HF_HUB_OFFLINE": "1"},
            "me/none: not completely in the local cache",
        ),
    ):
        done = cli("predict", place, tmp_path / "image.png", **environment)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
