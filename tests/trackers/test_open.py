import pytest
from paths import SMALL

import finetune
from finetune.errors import RecipeError
from finetune.trackers import open as opening
from finetune.trackers.open import open_trackers


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra_before_anything_is_loaded(name, monkeypatch, tmp_path):
    monkeypatch.setattr(opening, "find_spec", lambda _: None)
    recipe = finetune.load_recipe(SMALL, [f"trackers=[{name}]", "data.source=/nowhere/at/all"])
    with pytest.raises(RecipeError, match=rf"trackers.0: {name} is not installed: .*'flax-finetune\[{name}\]'"):
        finetune.run(recipe, output=tmp_path / "run", quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_called_like_a_package_is_none(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    with pytest.raises(RecipeError, match="wandb is not installed"):
        open_trackers(finetune.load_recipe(SMALL, ["trackers=[wandb]"]).trackers)
