"""The table of errors, from ``errors.yaml`` beside this file, which a test compares with what the program says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reference import table

TABLE = Path(__file__).with_name("errors.yaml")


def entries() -> dict[str, list[dict[str, Any]]]:
    """Group -> its errors: ``message`` (``...`` stands for what differs), ``cause``, ``do`` and ``command``, an example
    that ends with this message."""
    return YAML(typ="safe").load(TABLE)


def reference() -> str:
    return "\n\n".join(
        f"## {group}\n\n"
        + table(["message", "cause", "what to do"], [[f"`{e['message']}`", e["cause"], e["do"]] for e in errors])
        for group, errors in entries().items()
    )


def fits(message: str, said: str) -> bool:
    """Whether what was printed has a message of the table in it."""
    words = [re.escape(part) for part in message.split("...")]
    return re.search(".*?".join(words), said, re.DOTALL) is not None
