import json

import numpy as np
import pytest
from command_line import finetune


@pytest.fixture(scope="session")
def multi_label_run(tmp_path_factory):
    """(result of the command, folder of the run): LeNet for a few steps on images with up to three labels each."""
    folder = tmp_path_factory.mktemp("multi_label")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 3))
    images = rng.integers(0, 80, (60, 28, 28)) + 80 * labels[:, :1, None]
    names = np.array(["bright", "coin", "dice"])
    np.savez(folder / "images.npz", images=images.astype(np.uint8), labels=labels, class_names=names)
    partition = {"match": ".*", "optimizer": "sgd", "learning_rate": 0.1}
    recipe = {
        "backbone": {
            "module": "finetune.models.lenet:LeNet",
            "kwargs": {"num_classes": 3},
            "image": {"size": 28, "channels": 1},
        },
        "head": {"init": "none"},
        "data": {"source": "images.npz", "test": 0.4, "validation": 0.25},
        "stages": [{"epochs": 2, "batch_size": 9, "loss": "binary_cross_entropy", "partitions": [partition]}],
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return finetune("run", "recipe.yaml", "--output", "run", cwd=folder), folder / "run"
