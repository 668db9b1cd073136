"""Rows of a table: what their values are as text, and where they are, for messages."""

from __future__ import annotations

from typing import Any

LINE = "__line__"  # column of a table from a text file: the number of each row's line


def text_of(value: Any) -> str:
    """Without the spaces around it; empty for None."""
    return "" if value is None else str(value).strip()


def row_of(table: Any, index: int) -> str:
    """Where a row of a ``datasets.Dataset`` is: its line in the file, or its number."""
    return f"line {table[index][LINE]}" if LINE in table.column_names else f"row {index}"


def rows_of(table: Any, indices: Any) -> str:
    """How many rows, and where the first is."""
    first = row_of(table, int(indices[0]))
    return first if len(indices) == 1 else f"{len(indices)} rows, the first {first}"
