import json
import subprocess
import sys

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import numpy as np
import finetune.data.augment, finetune.images

names = [f"finetune.images.{module.name}" for module in pkgutil.iter_modules(finetune.images.__path__)]
modules = {name: importlib.import_module(name) for name in names}
spec = modules["finetune.images.spec"].ImageSpec(2, 2, None, "bilinear", (0.5,) * 3, (0.25,) * 3)
pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
restored = spec.denormalize(spec.normalize(pixels))
print(json.dumps({"names": names, "jax": "jax" in sys.modules, "restored": bool((restored == pixels).all())}))
"""


def test_images_and_augmentation_import_no_jax():
    process = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=True)
    result = json.loads(process.stdout)
    assert "finetune.images.open" in result["names"]
    assert result["restored"]
    assert not result["jax"]
