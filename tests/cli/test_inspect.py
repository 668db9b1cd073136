import json
import shutil

from command_line import clean_failure, finetune
from paths import GOLDENS


def test_inspect_refuses_pickled_and_truncated_weights(tmp_path):
    golden = GOLDENS / "vit"
    shutil.copytree(golden, tmp_path / "vit")
    weights = tmp_path / "vit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    clean_failure(finetune("inspect", tmp_path / "vit"), "model.safetensors: not a complete safetensors file")
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


def test_inspect_tells_recipes_and_checkpoints_apart(small_run, tmp_path):
    clean_failure(finetune("inspect", "quickstart"), "use: finetune plan quickstart")
    mine = tmp_path / "mine.yaml"
    clean_failure(finetune("inspect", mine), f"{mine}: a recipe, not a model; use: finetune plan {mine}")
    clean_failure(finetune("inspect", small_run.directory, "--image-size", "64"), "--image-size is for pretrained")


def test_inspect_prefers_a_folder_to_a_recipe_of_the_same_name(small_run, tmp_path):
    (tmp_path / "quickstart").symlink_to(small_run.directory, target_is_directory=True)
    assert "params/head/kernel" in finetune("inspect", "quickstart", cwd=tmp_path).stdout
