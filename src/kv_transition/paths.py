"""Where an experiment group keeps what."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from kv_transition.settings import Settings

DATABASE = "kv_transition.sqlite"


@dataclass(frozen=True)
class Paths:
    """The files of one experiment group."""

    group: str
    folder: Path
    database: Path

    @property
    def lock(self) -> Path:
        """Held by the harness that works on the database."""
        return self.database.with_name(f"{self.database.name}.lock")

    @property
    def figures(self) -> Path:
        """PNG files."""
        return self.folder / "figures"

    @property
    def tables(self) -> Path:
        """CSV files."""
        return self.folder / "tables"

    @property
    def summary(self) -> Path:
        """The numbers of the analysis."""
        return self.folder / "summary.json"

    @property
    def report(self) -> Path:
        """The report as Markdown; the page lies beside it."""
        return self.folder / "report.md"

    @property
    def page(self) -> Path:
        """The report as one self-contained page."""
        return self.folder / "report.html"

    @property
    def logs(self) -> Path:
        """What servers that were started here said."""
        return self.folder / "logs"


def of(settings: Settings) -> Paths:
    """Return the paths of an experiment group.

    One without a name is called by the time and a digest of its settings: the newest of the same settings is
    gone on with, else a new one begins.
    """
    root = Path(settings.output.folder)
    group = settings.output.exp_group_id or _newest(root, settings.digest()) or _new(settings.digest())
    folder = root / group
    database = Path(settings.db.path) if settings.db.path else folder / DATABASE
    return Paths(group, folder, database)


def processed(dataset_id: str) -> Path:
    """Return the folder of a prepared data set."""
    return Path("data") / "processed" / dataset_id


def _newest(root: Path, digest: str) -> str | None:
    found = sorted(path.name for path in root.glob(f"????????-??????-{digest}") if path.is_dir())
    return found[-1] if found else None


def _new(digest: str) -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{digest}"
