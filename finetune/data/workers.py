"""Whether processes that decode images can be started from here."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from types import FrameType

from finetune.errors import RecipeError


def check_workers(count: int) -> None:
    """Before ``count`` processes are started.

    Raises:
        RecipeError: there are more than processors, or each of them would run the program that starts them once more.
    """
    most = os.cpu_count() or 1
    if count > most:
        raise RecipeError(
            f"data.num_workers: {count} is more than the {most} processors of this machine; at most {most}"
        )
    if line := _unguarded_line(sys._getframe()):
        raise RecipeError(
            f"data.num_workers: {count}: worker processes import the script that starts them, and {line} would run "
            'once more in each; put it under  if __name__ == "__main__":  or set num_workers: 0'
        )


def _unguarded_line(frame: FrameType | None) -> str | None:
    """``file:line`` of the main script's statement that led here, if it runs on import too."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    while frame is not None and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if frame is None or file is None:
        return None  # not from a script's top level, or in a session that no process can import
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    for statement in tree.body:
        if statement.lineno <= frame.f_lineno <= (statement.end_lineno or statement.lineno):
            return None if _is_guard(statement) else f"{file}:{frame.f_lineno}"
    return None


def _is_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test)
    )
