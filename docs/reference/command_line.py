"""Every verb of the command line, from the program's own parser."""

from __future__ import annotations

import re
from typing import Any

from typer.main import get_command

from finetune.cli.grammar import EXAMPLES
from finetune.cli.main import app
from reference import table


def reference() -> str:
    """A list of the verbs, and a section for each."""
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    index = table(["verb", "what it does"], [[f"[`{name}`](#{name})", _help(verb)] for name, verb in verbs.items()])
    return "\n\n".join([index, *(_section(name, verb) for name, verb in verbs.items())])


def _section(name: str, verb: Any) -> str:
    context = verb.context_class(verb, info_name=name)
    records = [record for param in verb.params if (record := param.get_help_record(context))]
    rows = [[_usage(usage), _meaning(meaning)] for usage, meaning in records]
    words = table(["argument or option", "meaning"], rows)
    examples = "\n".join(("```bash", *EXAMPLES[name], "```"))
    return "\n\n".join([f"### {name} {{#{name}}}", _help(verb), *([words] if rows else []), examples])


def _help(verb: Any) -> str:
    return " ".join((verb.help or "").split())


def _usage(text: str) -> str:
    """Types are left out where the name says enough; choices stay."""
    name, _, kind = text.partition(" <")
    if "|" in kind:
        name += f" {kind.removesuffix('>')}"
    return f"`{name.upper() if name.islower() and not name.startswith('-') else name}`"


def _meaning(text: str) -> str:
    """As plain words: what Markdown or HTML would take for its own is none of it."""
    return re.sub(r"\\?([\[*<])", r"\\\1", " ".join(text.split()))
