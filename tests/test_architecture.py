"""Data goes one way: a room imports only from rooms below it."""

import ast

import pytest
from paths import ROOT

ROOMS = [  # from top to bottom
    "cli",
    "integrations",
    "demo",
    "report",
    "run",
    "trackers",
    "folder",
    "evaluation",
    "inference",
    "export",
    "training",
    "optim",
    "models",
    "data",
    "weights",
    "checkpoint",
    "distributed",
    "recipe",
    "page",
    "images",
    "resources",
    "compiled",
    "signals",
    "remote",
    "hub",
    "files",
    "untrusted",
    "tracking",
    "trees",
    "foreign_errors",
    "errors",
]
PACKAGE = ROOT / "finetune"


def imported_rooms(file):
    """The rooms that a file imports from, its lazy imports included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "finetune":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("finetune."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_below_it(room):
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else sorted((PACKAGE / room).rglob("*.py"))
    assert files
    upward = {
        f"{file.relative_to(ROOT)} imports from {other}"
        for file in files
        for other in imported_rooms(file)
        if other != room and ROOMS.index(other) <= ROOMS.index(room)
    }
    assert not upward


def test_every_room_has_its_place():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} == set(ROOMS)
