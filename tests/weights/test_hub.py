"""Hub ids, against a hub on loopback.

huggingface_hub reads its environment when it is imported, so what is tested runs in processes of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hub_server import environment as hub_environment
from paths import ROOT

TINY_CLIP = ROOT / "checkpoints" / "tiny-clip"

LOCATE = """
import json, sys
from finetune.errors import ModelError
from finetune.weights.locate import locate

answers = []
for source, revision in json.loads(sys.argv[1]):
    try:
        folder = locate(source, revision)
        answers.append({file.name: file.read_text() for file in folder.iterdir()})
    except ModelError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"

CONFIG = {"config.json": b'{"model_type": "clip"}', "preprocessor_config.json": b'{"size": 32}'}
TOKENIZER = {"tokenizer.json": b'{"tokens": 1}', "merges.txt": b"a b", "spiece.model": b"pieces"}
MODEL = {**CONFIG, "model.safetensors": b"weights"}
CARD = {"README.md": b"---\nlicense: mit\n---\n"}  # for its license
NOT_WANTED = {
    "modeling_clip.py": b"code",
    "pytorch_model.bin": b"pickle",
    "training_args.pt": b"pickle",
    "flax_model.msgpack": b"flax",
    "tf_model.h5": b"tf",
    "model.fp16.safetensors": b"half",
    "open_clip_model.safetensors": b"another layout",
    "onnx/config.json": b"{}",
    "onnx/model.safetensors": b"of a subfolder",
}


@pytest.fixture
def ask(hub, tmp_path):
    """Locates sources, in one fresh process; gives for each the files of its folder, or the error."""

    def ask(*sources, before="", **environment):
        asked = json.dumps([source if isinstance(source, tuple) else (source, None) for source in sources])
        return json.loads(run(hub, tmp_path, before + LOCATE, asked, **environment))

    return ask


def run(hub, folder, code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**hub_environment(hub, folder), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def text(files):
    return {name: content.decode() for name, content in files.items()}


def test_only_the_needed_files_are_asked_for(hub, ask):
    wanted = {**MODEL, **TOKENIZER, **CARD}
    hub.add("owner/clip", {**wanted, **NOT_WANTED})
    assert ask("owner/clip") == [text(wanted)]
    assert hub.fetched() == sorted(wanted)
    asked = {path.split("/", 5)[-1] for _, path in hub.requests if "/resolve/" in path}
    assert asked == {*wanted}  # not even a HEAD of anything else


def test_a_sharded_model_comes_with_the_shards_that_its_index_names(hub, ask):
    shards = {f"model-0000{i}-of-00002.safetensors": b"shard %d" % i for i in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("abc", [*shards, *shards], strict=False))}).encode()
    files = {**CONFIG, "model.safetensors.index.json": index, **shards}
    hub.add("owner/big", {**files, **NOT_WANTED, "model-00001-of-00001.safetensors": b"an older split"})
    assert ask("owner/big") == [text(files)]
    assert hub.fetched() == sorted(files)


def test_an_index_cannot_name_anything_but_safetensors_beside_it(hub, ask):
    named = ["pytorch_model.bin", "../model.safetensors", "onnx/model.safetensors"]
    for i, file in enumerate(named):
        index = json.dumps({"weight_map": {"a": file}}).encode()
        hub.add(f"owner/odd{i}", {**CONFIG, "model.safetensors.index.json": index, **NOT_WANTED})
    for i, error in enumerate(ask("owner/odd0", "owner/odd1", "owner/odd2")):
        start = (
            f"owner/odd{i}: model.safetensors.index.json: needs a weight_map of safetensors in its folder; it names "
        )
        assert error.startswith(start + repr(named[i]))
    assert not [path for _, path in hub.requests if path.endswith((".bin", ".safetensors"))]


def test_an_open_clip_repository_gives_its_own_weights(hub, ask):
    files = {"open_clip_config.json": b"{}", "merges.txt": b"a b", "open_clip_model.safetensors": b"weights"}
    hub.add("owner/open", {**files, "open_clip_pytorch_model.bin": b"pickle", "model.safetensors": b"a stray"})
    assert ask("owner/open") == [text(files)]
    assert hub.fetched() == sorted(files)


@pytest.mark.slow
def test_a_second_load_asks_the_hub_for_no_file_again(hub, ask):
    commit = hub.add("owner/clip", MODEL)
    first, again = ask("owner/clip", "owner/clip")
    assert first == again == text(MODEL)
    assert hub.fetched() == sorted(MODEL)

    hub.requests.clear()
    assert ask("owner/clip", f"owner/clip@{commit}") == [text(MODEL)] * 2
    assert not [path for _, path in hub.requests if "/resolve/" in path]

    hub.requests.clear()
    assert ask("owner/clip", ("owner/clip", commit), HF_HUB_OFFLINE="1") == [text(MODEL)] * 2
    assert hub.requests == []

    hub.stop()
    assert ask("owner/clip", f"owner/clip@{commit}") == [text(MODEL)] * 2


def test_a_branch_that_moved_is_fetched_anew(hub, ask):
    hub.add("owner/clip", MODEL)
    ask("owner/clip")
    moved = {**MODEL, "model.safetensors": b"trained more"}
    hub.add("owner/clip", moved)
    assert ask("owner/clip") == [text(moved)]
    assert hub.fetched().count("config.json") == 1  # the same bytes


def test_a_revision_is_named_in_the_source_or_beside_it(hub, ask):
    other, draft = {**MODEL, "model.safetensors": b"second"}, {**MODEL, "model.safetensors": b"a pull request"}
    commit = hub.add("owner/clip", MODEL, v2=other, **{"refs/pr/1": draft})
    sources = ["owner/clip@v2", ("owner/clip", "v2"), ("owner/clip@v2", "v2"), "owner/clip@refs/pr/1"]
    given = ask(*sources, f"owner/clip@{commit}")
    assert given == [text(other)] * 3 + [text(draft), text(MODEL)]
    assert ask(*sources, HF_HUB_OFFLINE="1") == given[:4]


def test_what_the_hub_does_not_have_is_named(hub, ask):
    hub.add("owner/clip", MODEL)
    hub.add("owner/words", {"README.md": b"words"})
    missing, revision, words = ask("owner/clop", "owner/clip@v9", "owner/words")
    assert missing.startswith("owner/clop: the hub has no such repository, or it needs a login (hf auth login)")
    assert revision.startswith("owner/clip@v9: the hub has this repository, but no such branch, tag or commit")
    assert words == "owner/words: not a checkpoint: no config.json or open_clip_config.json in its top folder"


def test_a_gated_repository_that_has_an_open_copy_names_it(hub, ask):
    name = "facebook/dinov3-vits16-pretrain-lvd1689m"
    hub.add(name, MODEL)
    hub.repositories[name].gated = 403
    (error,) = ask(name)
    assert error.endswith("; timm/vit_small_patch16_dinov3.lvd1689m has the same weights without that")


@pytest.mark.parametrize("status", [401, 403])  # to strangers, and to those who have not accepted
def test_a_gated_repository_says_to_accept_the_terms_and_log_in(hub, ask, status):
    hub.add("owner/gated", MODEL)
    hub.repositories["owner/gated"].gated = status
    (error,) = ask("owner/gated")
    assert error.startswith("owner/gated: gated: accept the terms on its page on the hub, then log in")


def test_pickled_weights_alone_are_refused_with_a_way_out(hub, ask):
    others = ["pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors"]
    for i, file in enumerate(others):
        hub.add(f"owner/old{i}", {**CONFIG, file: b"other"})
    for i, error in enumerate(ask("owner/old0", "owner/old1", "owner/old2")):
        assert error.startswith(f"owner/old{i}: has no safetensors (model.safetensors), and pickled weights, which can")
        assert "refs/pr/NUMBER" in error
        assert "safe_serialization=True" in error
    assert not [path for _, path in hub.requests if path.endswith(tuple(others))]


def test_without_a_hub_or_a_cache_the_network_is_named(hub, ask):
    hub.stop()
    (unreachable,) = ask("owner/clip")
    assert unreachable.startswith(
        "owner/clip: there is no folder of that name, it is not completely in the local cache"
    )
    assert "the hub cannot be reached; check the name and the network" in unreachable
    (offline,) = ask("owner/clip@v2", HF_HUB_OFFLINE="1")
    assert offline.startswith("owner/clip@v2: not completely in the local cache, and offline mode is on; unset")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.slow
def test_half_a_file_is_never_taken_for_a_whole_one(hub, ask, file):
    files = {**MODEL, file: MODEL[file].ljust(200_000)}
    hub.add("owner/clip", files)
    hub.broken.add(file)
    (error,) = ask("owner/clip")
    assert error.startswith("owner/clip: cannot be downloaded from the hub: ")
    assert error.endswith("; try again, complete files are kept")
    (offline,) = ask("owner/clip", HF_HUB_OFFLINE="1")
    assert "not completely in the local cache" in offline
    hub.broken.clear()
    assert ask("owner/clip") == [text(files)]


def test_a_full_disk_names_the_cache(hub, ask, tmp_path):
    files = {**MODEL, "model.safetensors": b"w" * 200_000}
    hub.add("owner/clip", files)
    (error,) = ask("owner/clip", before=FULL_DISK)
    assert error.startswith(f"owner/clip: cannot be saved in {tmp_path / 'hf' / 'hub'}: [Errno 27]")
    assert error.endswith("; free disk space, or change HF_HOME")
    assert ask("owner/clip") == [text(files)]


def test_a_model_that_another_program_cached_without_its_processor_is_not_taken_for_whole(hub, ask, tmp_path):
    commit = hub.add("owner/clip", MODEL)
    timm = {"config.json": b'{"architecture": "vit"}', "model.safetensors": b"weights"}  # has it in its config.json
    hub.add("owner/timm", timm)
    fetch = "[hf_hub_download('owner/' + o, n) for o in ('clip', 'timm') for n in ('config.json', 'model.safetensors')]"
    run(hub, tmp_path, f"from huggingface_hub import hf_hub_download; {fetch}; print()")
    offline, whole = ask("owner/clip", "owner/timm", HF_HUB_OFFLINE="1")
    assert "not completely in the local cache" in offline
    assert whole == text(timm)
    assert ask(f"owner/clip@{commit}") == [text(MODEL)]


def test_a_model_that_has_no_processor_is_whole_without_one(hub, ask):
    files = {"config.json": CONFIG["config.json"], "model.safetensors": b"weights"}
    hub.add("owner/bare", files)
    assert ask("owner/bare") == [text(files)]
    assert ask("owner/bare", HF_HUB_OFFLINE="1") == [text(files)]


def test_a_folder_wins_over_a_hub_id(hub, ask, tmp_path):
    hub.add("owner/clip", MODEL)
    (tmp_path / "owner" / "clip").mkdir(parents=True)
    (tmp_path / "owner" / "clip" / "config.json").write_text("local")
    assert ask("owner/clip") == [{"config.json": "local"}]
    assert hub.requests == []


@pytest.mark.slow
def test_a_backbone_from_the_hub_is_the_one_in_the_folder(hub, tmp_path):
    hub.add("owner/clip", {file.name: file.read_bytes() for file in TINY_CLIP.iterdir()})
    code = """
import sys, jax, numpy as np
import finetune

here, there = finetune.load_backbone(sys.argv[1]), finetune.load_backbone("owner/clip")
same = jax.tree.map(np.array_equal, here.variables, there.variables)
print(all(jax.tree.leaves(same)), len(jax.tree.leaves(same)) > 10, here.image_spec == there.image_spec)
"""
    assert run(hub, tmp_path, code, str(TINY_CLIP)) == "True True True"
    assert not [path for _, path in hub.requests if path.endswith((".py", ".bin"))]
