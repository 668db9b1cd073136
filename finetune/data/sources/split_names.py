"""The names that sources give to their splits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

from finetune.errors import DataError, listed

_T = TypeVar("_T")
_SPLITS = {
    "train": "train training trainval",
    "validation": "validation val valid dev eval",
    "test": "test testing holdout",
}
SPLITS = tuple(_SPLITS)
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words.split()}
_NEUTRAL = frozenset({"set", "data", "dataset", "image", "images", "img", "imgs", "split", "subset", "fold", "part"})


def canonical_split(name: str, *, loose: bool = False) -> str | None:
    """``train``, ``validation`` or ``test`` for a name such as ``Training_Set``; None for another name.

    Args:
        loose: other words may stand beside it, as in ``seg_train`` or ``cars_test``.
    """
    words = words_of(name)
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    others = [word for word in words if word not in _SPLIT_OF and word not in _NEUTRAL]
    if len(splits) != 1 or (others and not loose):
        return None
    return splits.pop()


def words_of(name: str) -> list[str]:
    """The words of ``Training_Set``, ``trainImages`` or ``testset``, in lower case, without numbers."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", apart)
    return [part for word in words for part in _apart(word.lower())]


def _apart(word: str) -> list[str]:
    """``trainset`` as ``train`` and ``set``."""
    for end in _NEUTRAL:
        if word.endswith(end) and word.removesuffix(end) in _SPLIT_OF:
            return [word.removesuffix(end), end]
    return [word]


def by_canonical_split(named: Iterable[tuple[str, _T]], where: str) -> tuple[dict[str, _T], tuple[str, ...]]:
    """(name, item) pairs as canonical split -> item, and the names that mean no split.

    A single item is training data, whatever its name.

    Raises:
        DataError: there is no training split, or two names mean the same split.
    """
    items = list(named)
    if len(items) == 1:
        return {"train": items[0][1]}, ()
    names = ", ".join(name for name, _ in items) or "none"
    loose = not any(canonical_split(name) == "train" for name, _ in items)
    splits: dict[str, _T] = {}
    unused = []
    for name, item in items:
        split = canonical_split(name, loose=loose)
        if split is None:
            unused.append(name)
        elif split in splits:
            raise DataError(f"{where}: has two {split} splits: {names}; remove or rename one")
        else:
            splits[split] = item
    if "train" not in splits:
        raise DataError(f"{where}: has no training split; its splits: {names}; one must be called train")
    return splits, tuple(unused)


def describe_unused(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """A line about splits that are not used, if there are any."""
    return (f"{where}: not used, as their names mean no split: {listed(names)}",) if names else ()
