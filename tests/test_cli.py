import io
import json
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from paths import GOLDENS, SMALL
from PIL import Image

from finetune.cli import main
from finetune.report.model import find_values

FINETUNE = [sys.executable, "-m", "finetune.cli"]


def in_a_process(*arguments, cwd=None):
    return subprocess.run([*FINETUNE, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


def finetune(*arguments, cwd=None, columns=80):
    """The same in this process, which saves the start of another; a bug's traceback fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd or Path.cwd())
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main sets it
        with pytest.raises(SystemExit) as stop:
            main()
    return subprocess.CompletedProcess(sys.argv, int(stop.value.code or 0), out.getvalue(), err.getvalue())


def test_importing_the_package_imports_neither_jax_nor_transformers():
    code = "import finetune, sys; print([m for m in ('jax', 'transformers', 'flax', 'grain') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_answers_in_under_half_a_second():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert "recipe" in in_a_process("--help").stdout
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_every_public_name_is_there():
    code = "import finetune; print(all(getattr(finetune, name) is not None for name in finetune.__all__))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


def test_ls_tells_the_purpose_of_each_recipe(tmp_path):
    out = finetune("ls", cwd=tmp_path, columns=300).stdout
    assert "quickstart" in out
    assert "clip_vit_b32" in out
    assert "zero-shot" in out


def test_predict_prints_labels_and_json(small_run, tmp_path):
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "a.png")
    text = finetune("predict", small_run.directory, tmp_path / "a.png", columns=300)
    assert text.returncode == 0
    assert "a.png" in text.stdout
    found = json.loads(in_a_process("predict", small_run.directory, "a.png", "a.png", "--json", cwd=tmp_path).stdout)
    assert [f["image"] for f in found] == ["a.png", "a.png"]
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert found[0]["label"] == max(found[0]["probabilities"], key=found[0]["probabilities"].get)


def test_evaluate_repeats_the_accuracy_of_the_run(small_run):
    found = json.loads(finetune("evaluate", small_run.directory, "--json").stdout)
    result = small_run.summary["results"][-1]
    assert (found["n"], found["accuracy"]) == (result["n"], result["accuracy"])


def test_check_tells_what_the_images_are(tmp_path):
    found = json.loads(finetune("check", SMALL, "--json").stdout)
    assert found["splits"]["test"]["images"] == 1438
    assert found["leakage"]["exact"] == 0
    table = finetune("check", SMALL, columns=200).stdout
    assert "8x8 - 8x8" in table
    assert "L 1,438" in table


def test_check_lists_broken_images_and_skips_them_only_when_told(tmp_path):
    for name in ("ant", "bee"):
        for i in range(6):
            path = tmp_path / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(path)
    for name in ("data/ant/1.png", "data/bee/4.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    options = ("data.source=data", "data.validation=0")
    clean_failure(finetune("check", SMALL, *options, cwd=tmp_path), "ant/1.png", "bee/4.png", "on_broken_image=skip")
    told = finetune("check", SMALL, *options, "data.on_broken_image=skip", cwd=tmp_path)
    assert told.returncode == 0
    assert len([line for line in told.stdout.splitlines() if line.startswith("skipped")]) == 2


def clean_failure(result, *words):
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


RECIPE = """\
backbone: {source: "builtin:tiny-clip"}
data: {source: digits}
stages:
  - name: train
    steps: 2
    partitions:
      - {match: ".*", learing_rate: 1.0e-3}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("learing", "learning"), encoding="utf-8")
    return tmp_path / "r.yaml"


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_valid_one(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    clean_failure(
        in_a_process("run", "r.yaml", cwd=tmp_path), "r.yaml:7", "learing_rate", "did you mean 'learning_rate'?"
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.0.steps=many", ["stages.0.steps", "integer", "'many'"]),
        ("backbone.source=builtin:none", ["no such bundled checkpoint", "tiny-clip"]),
        ("backbone.source=/nowhere/at/all", ["/nowhere/at/all", "no such folder"]),
        ("data.source=digit", ["no such file or folder", "did you mean 'digits'?"]),
        ("head.num_classes=3", ["head.num_classes: 3", "10 classes"]),
        ("stages.0.batch_size=100000", ["batch_size: 100000"]),
        ("stages.0.partitions.0.match=head", ["match no rule", "backbone/"]),
        ("stages.0.partitions.0.match=(", ["not a regular expression"]),
    ],
)
def test_bad_values_end_with_one_message_and_exit_code_2(recipe, override, words):
    clean_failure(finetune("run", recipe, override, cwd=recipe.parent), *words)


def test_a_checkpoint_of_an_unknown_family_is_refused_with_what_is_supported(recipe, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    clean_failure(finetune("run", recipe, f"backbone.source={tmp_path}"), "'swin' is not supported", "clip", "dinov2")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50_gn"}')
    clean_failure(finetune("inspect", tmp_path), "architecture 'resnet50_gn' is not supported", "convnext_*")


def test_inspect_refuses_pickled_and_truncated_weights(tmp_path):
    golden = GOLDENS / "vit"
    shutil.copytree(golden, tmp_path / "vit")
    weights = tmp_path / "vit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    clean_failure(finetune("inspect", tmp_path / "vit"), "model.safetensors: not a whole safetensors file")
    weights.rename(weights.with_name("pytorch_model.bin"))
    clean_failure(finetune("inspect", tmp_path / "vit"), "pytorch_model.bin", "can run code", "safe_serialization=True")


def test_inspect_shows_tree_totals_images_and_transfer():
    golden = GOLDENS / "dinov2-swiglu"
    shown = finetune("inspect", golden).stdout
    assert "params/encoder/layers/0/layer_scale1" in shown
    assert "shorter edge resized to 64 (bicubic), centre 56x56" in shown
    assert "transferred, 1 unused, none missing" in shown
    assert "1 x embeddings.mask_token" in shown
    data = json.loads(finetune("inspect", golden, "--image-size", "84", "--json").stdout)
    assert data["resized"] == ["params/embeddings/position_embedding/embedding"]
    assert sum(leaf["size"] for leaf in data["leaves"]) == sum(data["totals"].values())
    assert data["image_spec"]["height"] == 84


def test_inspect_tells_who_learns_how_fast_and_what_a_step_costs():
    shown = finetune("inspect", SMALL, "stages.1.partitions.0.layer_decay=0.9").stdout
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip().startswith("backbone/")}
    assert rows["backbone/encoder/layers/0/mlp/fc1/kernel"] == ["192x768", "frozen"]
    assert rows["backbone/encoder/layers/3/mlp/fc1/kernel"][2:] == ["sgd", "0.001"]
    for line in ("446,794 learn, 1,375,680 are frozen", "GFLOP for a batch of 32", "MB at the peak", "at most about"):
        assert line in shown


def test_values_are_found_by_path_with_or_without_the_collection(tiny_clip):
    bias = np.asarray(tiny_clip.variables["params"]["post_layernorm"]["bias"])
    for path in ("params/post_layernorm/bias", "post_layernorm/bias", "/post_layernorm/bias/"):
        (found,) = find_values(tiny_clip.variables, path)
        np.testing.assert_array_equal(np.float32(found["values"]), bias)
        assert (found["shape"], found["min"], found["max"]) == ([192], float(bias.min()), float(bias.max()))
    assert len(find_values(tiny_clip.variables, "encoder/layers/3")) == 16


def test_inspect_shows_a_trained_model_and_the_values_of_a_parameter(small_run):
    shown = finetune("inspect", small_run.directory).stdout
    assert "params/head/kernel" in shown
    assert "model     VisionTransformer, 10 classes" in shown
    bias = finetune("inspect", small_run.directory / "model", "--param", "head/bias").stdout
    assert bias.startswith("params/head/bias  float32 [10]: mean")
    below = json.loads(finetune("inspect", "builtin:tiny-clip", "--param", "post_layernorm", "--json").stdout)
    assert [leaf["path"] for leaf in below] == ["params/post_layernorm/bias", "params/post_layernorm/scale"]
    wrong = finetune("inspect", small_run.directory, "--param", "head/kernal")
    clean_failure(wrong, "there is no such parameter (did you mean 'head/kernel'?)")
    clean_failure(finetune("inspect", "quickstart", "--param", "head/bias"), "quickstart has no values yet")


def test_compare_sets_runs_side_by_side(small_run, tmp_path):
    shown = finetune("compare", small_run.directory, small_run.directory, "--figure", "c.png", cwd=tmp_path).stdout
    assert shown.count(f"{small_run.summary['results'][-1]['accuracy']:.4f}") >= 2
    assert (tmp_path / "c.png").is_file()
    clean_failure(finetune("compare", tmp_path), "no run's folder")


def test_a_module_of_ones_own_is_run_only_where_that_is_allowed(tmp_path):
    (tmp_path / "mine.py").write_text("from finetune.models.lenet import LeNet\n\n\nclass Mine(LeNet): ...\n")
    (tmp_path / "mine.yaml").write_text(
        """
        backbone: {module: "mine:Mine", image: {size: 28, channels: 1}}
        head: {init: none}
        data: {source: digits, shots_per_class: 10}
        stages: [{steps: 2, batch_size: 16, partitions: [{match: ".*", learning_rate: 0.1}]}]
        """
    )
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "a.png")
    for command in (["run", "mine.yaml"], ["predict", "checkpoints/mine", "a.png"]):
        clean_failure(in_a_process(*command, cwd=tmp_path), "mine:Mine: code from outside", "--allow-local-code")
        assert in_a_process(*command, "--allow-local-code", cwd=tmp_path).returncode == 0


def test_inspect_tells_recipes_and_checkpoints_apart(tmp_path):
    clean_failure(finetune("inspect", "builtin:tiny-clip", "seed=1"), "is not a recipe", "it takes no seed=1")
    clean_failure(finetune("inspect", "quickstart", "--image-size", "64"), "give backbone.image_size=64")
    clean_failure(finetune("inspect", tmp_path / "mine.yaml"), "mine.yaml: no such file")


def test_models_lists_every_family_and_layout():
    shown = finetune("models").stdout
    for word in ("SigLIP", "DINOv2", "ConvNeXt", "MobileNetV2", "timm", "open_clip", "features, other image sizes"):
        assert word in shown


def test_a_tensor_of_the_wrong_shape_is_named(recipe, goldens, tmp_path):
    shutil.copytree(goldens / "clip-quick-gelu", tmp_path / "bad")
    config = json.loads((tmp_path / "bad" / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 96
    (tmp_path / "bad" / "config.json").chmod(0o644)
    (tmp_path / "bad" / "config.json").write_text(json.dumps(config))
    result = finetune("run", recipe, f"backbone.source={tmp_path / 'bad'}")
    clean_failure(result, "vision_model.encoder.layers.0.mlp.fc1.weight", "(64, 128) given, (64, 96) needed")


def test_an_image_that_is_not_an_image_is_named_before_training(recipe, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "b" / "3.png").write_bytes(b"no picture at all")
    clean_failure(finetune("run", recipe, f"data.source={tmp_path / 'data'}"), "3.png: not an image")


def test_predict_with_bad_input_names_it(small_run, tmp_path):
    clean_failure(finetune("predict", tmp_path, "x.png"), "no run and no model bundle")
    clean_failure(finetune("predict", small_run.directory, "x.png", cwd=tmp_path), "x.png: no such file")
    clean_failure(finetune("evaluate", tmp_path / "none"), "no such folder")


def test_a_recipe_that_is_missing_is_an_error_that_lists_the_bundled_ones(tmp_path):
    clean_failure(finetune("run", "quikstart", cwd=tmp_path), "did you mean 'quickstart'?", "clip_vit_b32")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash to limit the size of files")
def test_a_disk_that_takes_no_more_is_one_message(recipe, tmp_path):
    limited = ["bash", "-c", 'ulimit -f 900; exec "$@"', "limited"]  # KiB in a file: the state of tiny-clip is larger
    command = [*limited, *FINETUNE, "run", str(recipe)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    clean_failure(result, "cannot save", "make room")
