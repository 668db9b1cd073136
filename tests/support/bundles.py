"""Small bundles of every format, and what a hostile hand does to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paths import ROOT

from finetune.files import hash_json

BUNDLES = ROOT / "tests" / "export" / "bundles"
CURRENT = BUNDLES / "format-5"


def copy_bundle(target: Path, source: Path = CURRENT) -> Path:
    return Path(shutil.copytree(source, target))


def describe(bundle: Path) -> dict[str, Any]:
    """The description without its digest."""
    model = json.loads((bundle / "model.json").read_text())
    model.pop("sha256", None)
    return model


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the description in place, and gives it a digest that fits."""
    model = describe(bundle)
    change(model)
    (bundle / "model.json").write_text(json.dumps({**model, "sha256": hash_json(model)}))
