"""``finetune ls``"""

from __future__ import annotations

from finetune.cli.tables import print_table


def list_recipes() -> None:
    """List the bundled recipes."""
    from finetune import resources
    from finetune.recipe.source import purpose

    print_table(["recipe", "purpose"], [[name, purpose(path)] for name, path in resources.recipes().items()])
