"""What a run comes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.folder.run_folder import RunFolder
from finetune.inference.predictor import Predictor, restore
from finetune.page.facts import ShownByFacts

_PICTURES = 12  # that a notebook shows


@dataclass(frozen=True, repr=False)
class RunResult(ShownByFacts):
    """A finished run: its folder, and what its ``summary.json`` says. A notebook shows its table and its pictures."""

    directory: Path
    summary: dict[str, Any]
    allow_local_code: bool = False

    @property
    def report(self) -> Path:
        """The run as a page, ``report.html``."""
        return RunFolder(self.directory).report

    def predictor(self) -> Predictor:
        """The run's model, ready to predict."""
        return restore(self.directory, allow_local_code=self.allow_local_code)

    def _facts(self) -> dict[str, Any]:
        results = {result["name"]: result for result in self.summary.get("results", ())}
        facts: dict[str, Any] = {"directory": str(self.directory), "kept": self._kept}
        if (kept := results.get(self._kept)) is not None:
            facts |= {kept["metric"]: round(kept[kept["metric"]], 4), "test_images": kept["n"]}
        return facts

    @property
    def _kept(self) -> str | None:
        """The stage whose weights are the model's."""
        return (self.summary.get("kept") or {}).get("stage")

    def _repr_html_(self) -> str:
        from finetune.page.html import render

        return render(
            "result.html",
            directory=str(self.directory),
            verdict=self.summary.get("verdict"),
            results=self.summary.get("results", ()),
            kept=self._kept,
            also=self.summary.get("also") or {},
            pictures=list(self._pictures()),
            report=str(self.report) if self.report.is_file() else None,
        )

    def _pictures(self) -> Iterator[tuple[str, Any]]:
        """(name, picture) of the run's figures, as far as they can be read."""
        from finetune.page.html import picture_of_file

        for file in sorted(RunFolder(self.directory).figures.glob("*.png"))[:_PICTURES]:
            name = file.stem.replace("_", " ")
            if (shown := picture_of_file(file, f"{name} of {self.directory.name}")) is not None:
                yield name, shown
