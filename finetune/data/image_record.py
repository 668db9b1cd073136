"""A hash of each image of a run, kept with it: what changed is told by number and by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.data.labeled_images import Split
from finetune.data.splits import Splits

IMAGES_FILE = "images.safetensors"
_SOURCE = "data.source"


@dataclass(frozen=True)
class ImageRecord:
    """Images as they are, or as they were at the start of a run.

    Attributes:
        sha256: by where the recipe names the images, over their contents, labels and order.
        hashes: uint64 [n] by the same, the beginning of each image's content hash.
        splits: the images themselves; empty for a record that was loaded.
    """

    sha256: Mapping[str, str]
    hashes: Mapping[str, np.ndarray]
    splits: Mapping[str, Sequence[Split]] = field(default_factory=dict)

    @classmethod
    def of(cls, splits: Splits, also: Mapping[str, Split] | None = None) -> ImageRecord:
        """
        Args:
            also: further test sets by name.
        """
        further = {f"evaluate.also.{name}": [split] for name, split in (also or {}).items()}
        sets: dict[str, Sequence[Split]] = {_SOURCE: list(splits.named().values()), **further}
        sha256 = {_SOURCE: splits.sha256, **{name: _sha256(split) for name, (split,) in further.items()}}
        hashes = {name: np.concatenate([_short(split) for split in images]) for name, images in sets.items()}
        return cls(sha256, hashes, sets)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        from safetensors.numpy import save

        return save(dict(self.hashes), dict(self.sha256))

    @classmethod
    def load(cls, folder: Path) -> ImageRecord | None:
        """None where there is none, or it is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(folder / IMAGES_FILE, "numpy") as file:
                hashes = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
                return cls(file.metadata() or {}, hashes)
        except (OSError, SafetensorError):
            return None

    def changes_since(self, before: ImageRecord) -> str | None:
        """What differs from an earlier record, in words; None where these images are the same."""
        lines = (
            f"{name}: {self._describe(name, before.hashes.get(name))}"
            for name, digest in self.sha256.items()
            if before.sha256.get(name, digest) != digest
        )
        return "; ".join(lines) or None

    def _describe(self, name: str, before: np.ndarray | None) -> str:
        if before is None:
            return "has other images or labels than at its start"
        now = self.hashes[name]
        new, gone = np.flatnonzero(~np.isin(now, before)), int((~np.isin(before, now)).sum())
        parts = []
        if len(new):
            are = "image is not one" if len(new) == 1 else "images are not those"
            parts.append(f"{len(new):,} of {len(now):,} {are} of its start, such as {self._name(name, int(new[0]))}")
        if gone > len(new):
            parts.append(f"{gone:,} of the {len(before):,} of its start are missing")
        return " and ".join(parts) or "the images are those of its start, but labels, splits or order are others"

    def _name(self, name: str, index: int) -> str:
        for split in self.splits[name]:
            if index < len(split):
                return split.name(index)
            index -= len(split)
        raise IndexError(index)


def _short(split: Split) -> np.ndarray:
    assert split.stats is not None
    return np.ascontiguousarray(split.stats.content_hash[:, :8]).view(np.uint64)[:, 0]


def _sha256(split: Split) -> str:
    assert split.stats is not None
    return hashlib.sha256(split.labels.tobytes() + split.stats.content_hash.tobytes()).hexdigest()
