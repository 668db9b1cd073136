"""Where tests find files of the project."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
GOLDENS = TESTS / "goldens"  # small reference values that come with the project
SMALL = TESTS / "small.yaml"  # a recipe of two short stages
