"""Commands with something wrong: one message that names it, and an exit code that is documented."""

import json
import shutil

import numpy as np
import pytest
from command_line import finetune
from PIL import Image
from reference.errors import entries, fits

RECIPE = """\
backbone: {source: "builtin:tiny-clip"}
data: {source: digits, test: 0.1}
stages:
  - {name: probe, type: linear_probe, l2: 1.0}
  - name: train
    steps: 2
    partitions:
      - {match: head, learning_rate: 1.0e-3}
      - {match: ".*", frozen: true}
"""
CODES = {0, 2, 3, 130, 143}


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_run):
    """A folder with good and bad files of every kind."""
    root = tmp_path_factory.mktemp("place")
    (root / "r.yaml").write_text(RECIPE)
    (root / "list.yaml").write_text("- 1\n- 2\n")
    (root / "tabs.yaml").write_text("a:\n\t- b\n")
    (root / "twice.yaml").write_text(RECIPE + "seed: 1\nseed: 2\n")
    (root / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (root / "empty.yaml").write_text("")
    (root / "python.yaml").write_text("!!python/object/apply:os.system [ls]\n")
    for name in ("a", "b"):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(root / "photos" / name / f"{i}.png")
    (root / "one" / "only").mkdir(parents=True)
    shutil.copy(root / "photos" / "a" / "0.png", root / "one" / "only")
    (root / "nothing").mkdir()
    shutil.copytree(root / "photos", root / "broken")
    (root / "broken" / "a" / "0.png").write_bytes(b"no image")
    (root / "t.csv").write_text("file,label\nphotos/a/0.png,a,x\n")
    (root / "scores.csv").write_text("file,score\nphotos/a/0.png,0.5\nphotos/b/0.png,0.7\n")
    (root / "missing.csv").write_text("file,label\n" + "none/0.png,a\nnone/1.png,b\n" * 5)
    (root / "x.parquet").write_bytes(b"PAR1 broken")
    np.savez(root / "floats.npz", images=np.zeros((4, 3, 3)), labels=np.arange(4))
    (root / "x.zip").write_bytes(b"PK")
    (root / "notes").mkdir()
    (root / "notes" / "mine.txt").write_text("mine")
    shutil.copytree(small_run.directory, root / "run")
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    (root / "damaged").mkdir()
    (root / "damaged" / "model.json").write_text("{")
    return root


RUN = ["run", "r.yaml"]
BAD = [
    (["run"], "Missing argument"),
    (["rum", "r.yaml"], "No such command"),
    (["run", "nope.yaml"], "no such file"),
    (["run", "quikstart"], "did you mean 'quickstart'?"),
    (["run", "photos"], "a folder, not a recipe"),
    (["run", "list.yaml"], "a recipe is a mapping"),
    (["run", "tabs.yaml"], "tabs.yaml:2: not valid YAML"),
    (["run", "twice.yaml"], "twice.yaml"),
    (["run", "binary.yaml"], "binary.yaml: not a YAML text"),
    (["run", "empty.yaml"], "received nothing"),
    (["run", "python.yaml"], "python.yaml"),
    ([*RUN, "sed=1"], "did you mean 'seed'?"),
    ([*RUN, "seed"], "write key=value"),
    ([*RUN, "seed=x"], "seed"),
    ([*RUN, "seed=-1"], "seed"),
    ([*RUN, "seed=[1"], "is not a YAML value"),
    ([*RUN, "~sead"], "there is no key"),
    ([*RUN, "stages.9.name=x"], "is no item of a list of 2"),
    ([*RUN, "stages.1.lr=1"], "unknown key 'stages.1.lr'; valid here: "),
    ([*RUN, "stages.1.epochs=0"], "epochs"),
    ([*RUN, "stages.1.epochs=2"], "either epochs, steps or examples"),
    ([*RUN, "stages.1.batch_size=100000"], "batch_size: 100000"),
    ([*RUN, "stages.1.partitions.0.match=["], "not a regular expression"),
    ([*RUN, "stages.1.partitions.0.match=blocks[9]"], "the backbone has 4 blocks"),
    ([*RUN, "stages.1.partitions.0.match=blocks[-9:]"], "the backbone has 4 blocks"),
    ([*RUN, "stages.1.partitions.0.match=blocks[2:1]"], "the backbone has 4 blocks"),
    ([*RUN, "stages.1.partitions.1.match=biases"], "match no rule"),
    ([*RUN, "stages.1.partitions.0.learning_rate=-1"], "greater than 0"),
    ([*RUN, "stages.1.partitions.0.learning_rate=.nan"], "learning_rate"),
    ([*RUN, "stages.1.partitions.0.optimizer=adm"], "did you mean 'adam'?"),
    ([*RUN, "stages.1.partitions.0.schedule=cosin"], "did you mean 'cosine'?"),
    ([*RUN, "stages.1.loss=focall"], "did you mean 'focal'?"),
    ([*RUN, "stages.1.early_stopping={patience: 0}"], "patience"),
    ([*RUN, "data.validation=0", "stages.1.early_stopping={patience: 2}"], "no validation images"),
    ([*RUN, "evaluate.metric=f1"], "evaluate.metric"),
    ([*RUN, "backbone.source=nope"], "no such folder"),
    ([*RUN, "backbone.source=builtin:nope"], "no such bundled checkpoint"),
    ([*RUN, "backbone.source=photos"], "not a checkpoint"),
    ([*RUN, "backbone.source=model"], "model"),
    ([*RUN, "backbone.image_size=50"], "no multiple of the model's patches"),
    ([*RUN, "backbone.module=os:system", "~backbone.source", "backbone.image={size: 8}"], "os:system"),
    ([*RUN, "data.source=nope"], "no such file or folder in "),
    ([*RUN, "data.source=nothing"], "at least two classes"),
    ([*RUN, "data.source=one"], "at least two classes; has only/"),
    ([*RUN, "data.source=broken"], "0.png: not an image"),
    ([*RUN, "data.source=t.csv"], "line 2: has 3 fields"),
    ([*RUN, "data.source=scores.csv"], "no column looks like labels"),
    ([*RUN, "data.source=missing.csv"], "no such file"),
    ([*RUN, "data.source=x.parquet"], "cannot be read as Parquet"),
    ([*RUN, "data.source=floats.npz"], "save pixels as integers from 0 to 255"),
    ([*RUN, "data.source=x.zip"], "unsupported type of file"),
    ([*RUN, "data.source=photos", "data.columns.label=x"], "data.columns: has no effect"),
    ([*RUN, "data.source=photos", "data.num_workers=5000"], "more than this machine has processors|processors"),
    ([*RUN, "data.shots_per_class=5000"], "shots_per_class"),
    ([*RUN, "data.test=2"], "data.test"),
    ([*RUN, "head.num_classes=3"], "10 classes"),
    ([*RUN, "head.init=zero_shot", "head.templates=[a]"], "each template needs {} once"),
    ([*RUN, "--output", "notes"], "is not empty, and holds no run"),
    ([*RUN, "--output", "notes", "--overwrite"], "--overwrite replaces a run, and this is none|replaces runs alone"),
    ([*RUN, "--output", "t.csv"], "a file has that name"),
    ([*RUN, "--output", "t.csv/deep"], "a file has that name"),
    ([*RUN, "--output", "run"], "already holds a run"),
    ([*RUN, "--output", "run", "--resume"], "was started with another"),
    ([*RUN, "--output", "run", "--resume", "--overwrite"], "give one of them"),
    (["predict", "photos", "photos/a/0.png"], "no run and no model bundle"),
    (["predict", "damaged", "photos/a/0.png"], "cannot be read as JSON"),
    (["predict", "run", "nope.png"], "no such file"),
    (["predict", "run", "nothing"], "no images there"),
    (["predict", "run", "https://a.org/b.png"], "download it"),
    (["evaluate", "photos"], "no run and no model bundle"),
    (["evaluate", "run", "--data", "photos"], "does not know: a, b"),
    (["evaluate", "run", "--split", "tset"], "tset"),
    (["compare", "run", "photos"], "not a run's folder"),
    (["check-data", "r.yaml", "data.source=nothing"], "at least two classes"),
    (["plan", "r.yaml", "stages.1.partitions.0.match=nope"], "nope"),
    ([*RUN, "mesh={data: 3}"], "mesh: data 3 x fsdp 1 x tensor 1 is 3, and there is 1 device"),
    ([*RUN, "trackers=[tensorbord]"], "did you mean 'tensorboard'?"),
    ([*RUN, "trackers=[{name: mlflow, uri: a}]"], "unknown key 'trackers.0.uri'"),
    ([*RUN, "--dry-run", "--resume"], "--dry-run starts nothing"),
    ([*RUN, "--dry-run", "--num-processes", "2"], "--dry-run is for one process"),
    (["train", "nothing"], "at least two classes"),
    (["train", "r.yaml"], "unsupported type of file"),
    (["train", "photos", "--minutes", "0"], "minutes: give how many the run may take"),
    (["train", "photos", "--output", "notes"], "is not empty, and holds no run"),
    (["lr-find", "r.yaml", "~stages.1"], "no stage trains by gradient descent"),
    (["demo", "photos"], "no run and no model bundle"),
    (["demo", "run", "--host", "nope"], "'nope' is no address"),
    (["cp", "quickstart", "r.yaml"], "is there already"),
    (["push", "photos", "me/photos"], "no model bundle there"),
    (["soup", "photos", "nothing", "--output", "s"], "not a finished run"),
    (["leaderboard", "nothing", "--backbones", "builtin:tiny-clip"], "at least two classes"),
    (["inspect", "nope"], "no such folder"),
    (["inspect", "builtin:nope"], "no such bundled checkpoint"),
]
DOCUMENTED = {entry["command"]: entry["message"] for group in entries().values() for entry in group}
LIBRARIES = ("pydantic", "sklearn", "scikit", "TensorStore", "ArrowInvalid", "pyarrow", "orbax", "ruamel")


def test_there_are_enough_of_them():
    assert len(BAD) >= 60


def test_the_errors_that_are_documented_are_among_them():
    assert DOCUMENTED.keys() <= {" ".join(command) for command, _ in BAD}


@pytest.mark.parametrize(
    ("command", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_it_is_named_in_one_message(place, command, message):
    before = sorted(str(path) for path in (place / "notes").rglob("*"))
    result = finetune(*command, cwd=place, columns=300)
    said = result.stdout + result.stderr
    assert result.returncode in CODES - {0}, said
    assert "Traceback" not in said
    assert any(part in said for part in message.split("|")), said
    assert fits(DOCUMENTED.get(" ".join(command), ""), said), "not as docs/reference/errors.yaml has it"
    assert not [name for name in LIBRARIES if name in result.stderr], "a library's own text"
    assert sorted(str(path) for path in (place / "notes").rglob("*")) == before
