"""``finetune schema``"""

from __future__ import annotations

from finetune.cli.tables import print_json


def schema() -> None:
    """Print the JSON Schema of a recipe, which editors use to complete and check one."""
    import finetune

    print_json(finetune.recipe_schema())
