import os
import shutil
import signal

import pytest
from paths import SMALL

import finetune
from finetune.errors import Interrupted, RecipeError
from finetune.folder.mirror import bring_back, mirrored
from finetune.remote import fetch, push_to_url
from finetune.signals import StopSignal


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    (folder / "state" / "5" / "variables").mkdir(parents=True)
    (folder / "state" / "5" / "variables" / "d").write_bytes(b"12")
    (folder / "state" / "9.orbax-checkpoint-tmp").mkdir()
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "events").mkdir()
    (folder / "events" / "events.out.tfevents.1.vm.1.0").write_bytes(b"1")
    (folder / "run.json").write_text("{}")
    (folder / "summary.json.7.new").write_text("{")
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_mirror_has_what_the_folder_has_but_what_is_being_written(folder, tmp_path):
    url = f"file://{tmp_path}/bucket/run"
    with mirrored(folder, url, pytest.fail) as mirror:
        mirror.update()
        (folder / "summary.json").write_text("{}")
    whole = {name: data for name, data in files(folder).items() if not name.endswith(".new")}
    assert files(fetch(url)) == whole
    for growing in ("metrics.jsonl", "events/events.out.tfevents.1.vm.1.0"):
        assert os.stat(folder / growing).st_nlink == 1
    bring_back(tmp_path / "back" / "run", url)
    assert files(tmp_path / "back" / "run") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "bucket", "cache", "run"]


def test_files_that_are_there_already_are_not_sent_again(folder, tmp_path, monkeypatch):
    import fsspec

    url = f"file://{tmp_path}/bucket/run"
    push_to_url(folder, url)
    system = type(fsspec.url_to_fs(url)[0])
    put, sent = system.put_file, []
    monkeypatch.setattr(system, "put_file", lambda self, here, *a, **k: (sent.append(here), put(self, here, *a, **k)))
    (folder / "run.json").write_text('{"now": 1}')
    push_to_url(folder, url)
    assert [os.path.basename(here) for here in sent] == ["run.json"]
    assert files(fetch(url)) == files(folder)


def test_a_place_that_cannot_be_written_to_is_said_once_and_stops_nothing(folder, tmp_path):
    (tmp_path / "bucket").write_text("a file")
    said = []
    with mirrored(folder, f"file://{tmp_path}/bucket/run", said.append) as mirror:
        mirror.update()
    assert len(said) == 1
    assert "the run goes on without it" in said[0]


def test_without_a_copy_nothing_is_brought_back(tmp_path):
    bring_back(tmp_path / "run", f"file://{tmp_path}/nothing")
    assert not (tmp_path / "run").exists()


def test_a_path_is_no_mirror():
    with pytest.raises(RecipeError, match=r"save\.mirror"):
        finetune.load_recipe(SMALL, ["save.mirror=/tmp/copies"])


@pytest.mark.slow
def test_a_run_whose_disk_is_lost_goes_on_from_its_mirror_to_the_same_bits(small_run, tmp_path, monkeypatch):
    recipe = finetune.load_recipe(SMALL, [f"save.mirror=file://{tmp_path}/bucket/run"])
    check, seen = StopSignal.check, []

    def check_once(self, when):
        if "finetune: test" in when and not seen:
            seen.append(when)
            os.kill(os.getpid(), signal.SIGTERM)
        check(self, when)

    monkeypatch.setattr(StopSignal, "check", check_once)
    with pytest.raises(Interrupted, match="during finetune: test"):
        finetune.run(recipe, output=tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "run")
    resumed = finetune.run(recipe, output=tmp_path / "run", resume=True, quiet=True)
    assert resumed.summary["weights_sha256"] == small_run.summary["weights_sha256"]
    predictor = finetune.restore(f"file://{tmp_path}/bucket/run")
    assert predictor.class_names == resumed.predictor().class_names
