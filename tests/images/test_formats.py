import json
import subprocess
import sys

ENDINGS = """
import json
from finetune.images.formats import image_extensions

print(json.dumps(sorted(image_extensions())))
"""

# As pillow-heif: it registers its endings when it is asked to.
PLUGIN = """
from PIL import Image

def register_heif_opener():
    Image.register_open("HEIF", None)
    Image.register_extensions("HEIF", [".heic", ".heif", ".hif"])
"""


def endings(folder):
    process = subprocess.run([sys.executable, "-c", ENDINGS], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(process.stdout)


def test_a_plugin_adds_its_endings_to_those_of_images(tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "pillow_heif.py").write_text(PLUGIN)
    assert {".hif", ".jpg"} <= set(endings(tmp_path))
    assert ".jpg" in endings(tmp_path / "without")
