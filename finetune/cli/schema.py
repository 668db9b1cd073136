"""``finetune schema``"""

from __future__ import annotations

from finetune.cli.tables import print_json


def schema() -> None:
    """Print the JSON Schema of a recipe, with which editors complete and check recipes."""
    import finetune

    print_json(finetune.recipe_schema())
