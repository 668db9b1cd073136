"""The Markdown that users read: its code blocks, links and headings."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_SEPARATORS = {"&&", "||", "|", ";", "&"}


@dataclass(frozen=True)
class Block:
    page: str  # relative to the repository
    line: int
    language: str
    code: str
    reason: str | None  # why no test runs it

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks(language):
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def blocks_of(page: Path):
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text[: match.start("language")].count("\n") + 1
        name = page.relative_to(ROOT).as_posix()
        yield Block(name, line, match["language"], match["code"], match["reason"])


def prose(text):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(code):
    """The arguments of each ``finetune`` that a shell would start, without redirections."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words = [[]]
        for token in lexer:
            if token in _SEPARATORS:
                words.append([])
            else:
                words[-1].append(token)
        for command in words:
            if ">" in command:
                command = command[: command.index(">")]
            programs = [i for i, word in enumerate(command) if word.rpartition("/")[2] == "finetune"]
            if programs and (programs[0] == 0 or command[0] in ("srun", "exec")):
                yield command[programs[0] + 1 :]
