"""``finetune models``"""

from __future__ import annotations

from finetune.cli.tables import print_table


def list_models() -> None:
    """List the model families, their layouts and usual licenses, and what is verified against PyTorch."""
    from finetune.models.registry import FAMILIES

    rows = [
        [
            *(("", "") if i else (family.title, family.license)),
            reader.layout,
            reader.label or reader.model_types,
            ", ".join(reader.verified),
        ]
        for family in FAMILIES
        for i, reader in enumerate(family.readers)
    ]
    print_table(["family", "usual license", "layout", "model_type or architecture", "equal to PyTorch's"], rows)
