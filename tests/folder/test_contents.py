import os
import shutil

from run_folders import HEX, make_run, tree

from finetune.folder.contents import Contents

FOREIGN = {  # a file: what is named of it
    "notes.txt": "notes.txt",
    "metrics.jsonl.bak": "metrics.jsonl.bak",
    ".hidden": ".hidden",
    "data/a.png": "data",
    "figures/mine.png": "figures/mine.png",
    "figures/other_batch.png": "figures/other_batch.png",
    "figures/curves.svg": "figures/curves.svg",
    "figures/more/curves.png": "figures/more",
    "events/notes.txt": "events/notes.txt",
    "events/train/events.out.tfevents.1.vm.1.0": "events/train",
    "state/notes.txt": "state/notes.txt",
    "state/7/notes.txt": "state/7/notes.txt",
    "state/7/variables/notes.txt": "state/7/variables/notes.txt",
    "state/7/variables/d/notes.txt": "state/7/variables/d/notes.txt",
    "state/best/_METADATA": "state/best",
    "model/notes.md": "model/notes.md",
    "model/weights/notes.txt": "model/weights/notes.txt",
    f"model/weights/{HEX}": f"model/weights/{HEX}",
    "model/extra/model.json": "model/extra",
    "model.backup/model.json": "model.backup",
}


def test_what_no_run_wrote_is_told_by_name_and_place(tmp_path):
    directory = make_run(tmp_path / "run").directory
    assert not Contents(directory).foreign()
    for name in FOREIGN:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("mine")
    assert sorted(Contents(directory).foreign()) == sorted(FOREIGN.values())


def test_what_no_run_wrote_stays_when_a_run_is_removed(tmp_path):
    directory = make_run(tmp_path / "run").directory
    for name in FOREIGN:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("mine")
    (directory / "figures" / "reliability.png").symlink_to(tmp_path)
    left = Contents(directory).remove_written()
    files = {name for name, content in tree(directory).items() if content == b"mine"}
    assert files == set(FOREIGN)
    assert sorted(left) == sorted([*FOREIGN.values(), "figures/reliability.png"])


def test_something_of_another_kind_than_a_run_writes_is_not_a_runs(tmp_path):
    directory = make_run(tmp_path / "run").directory
    (directory / "summary.json").unlink()
    (directory / "summary.json").mkdir()
    os.mkfifo(directory / "figures" / "confusion.png")
    shutil.rmtree(directory / "model" / "weights")
    (directory / "model" / "weights").write_text("")
    assert Contents(directory).foreign() == ["figures/confusion.png", "model/weights", "summary.json"]


def test_everything_that_a_real_run_leaves_is_a_runs(small_run):
    assert not Contents(small_run.directory).foreign()
    assert not Contents(small_run.directory).links()
