"""Where the study puts what it makes: a folder for each model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RUNS = Path("runs") / "directed"


@dataclass(frozen=True)
class Layout:
    """The files of one model."""

    root: Path
    model: str

    @property
    def folder(self) -> Path:
        """All that is the model's."""
        return self.root / _safe(self.model)

    def journal(self, dataset: str, track: str) -> Path:
        """Return the rows of a track's cells, as they were scored."""
        return self.folder / "scored" / f"{_safe(dataset)}-{track}.jsonl"

    def experiment(self, name: str) -> Path:
        """Return the folder of an experiment."""
        return self.folder / name

    def table(self, name: str, dataset: str) -> Path:
        """Return the ``directed`` table of an experiment on a data set."""
        return self.experiment(name) / "tables" / f"{_safe(dataset)}.parquet"

    def tables(self, name: str) -> list[Path]:
        """Return the tables of an experiment that are there."""
        return sorted((self.experiment(name) / "tables").glob("*.parquet"))

    def results(self, name: str) -> Path:
        """Return the ``results`` table of an experiment."""
        return self.experiment(name) / "results.parquet"

    def shown(self, name: str, dataset: str) -> Path:
        """Return the examples of a data set that an experiment's page shows."""
        return self.experiment(name) / "examples" / f"{_safe(dataset)}.json"

    def figures(self, name: str) -> Path:
        """Return the folder of an experiment's figures."""
        return self.experiment(name) / "figures"

    @property
    def metrics(self) -> Path:
        """The headline numbers of every experiment."""
        return self.folder / "metrics.json"


def page(root: Path) -> Path:
    """Return the report of all models."""
    return root / "report.html"


def models(root: Path) -> list[Layout]:
    """Return the models of which there are results."""
    folders = sorted({path.parent.parent for path in root.glob("*/*/results.parquet")})
    return [Layout(root, folder.name) for folder in folders]


def _safe(name: str) -> str:
    """Return a name as a file may have it."""
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in name)
