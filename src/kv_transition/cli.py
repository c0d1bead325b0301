"""The ``kv-transition`` shell command: thin, and slow imports only once a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvguard.stage import one_line_errors

PHASES = ("prepare", "run", "score", "analyze", "report")
EXAMPLES = """\b
An experiment from its settings to its report, as it is typed:
  kv-transition all -c config/experiments/reference.yaml
  kv-transition all -c config/experiments/reference.yaml --force score
  kv-transition refine -c config/experiments/reference.yaml -n 40
  kv-transition compare runs/one/kv_transition.sqlite runs/other/kv_transition.sqlite
\b
docs/transition.md says what is measured, and how the detector works.
"""

_config = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The settings of an experiment, over config/default.yaml.",
)


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kvguard")
def main() -> None:
    """Measure where, along context length, a compressed KV cache becomes unreliable."""


@main.command()
@_config
@one_line_errors
def prepare(config: Path) -> None:
    """Load, count, bin and choose examples; write the manifest."""
    _work(config, ["prepare"])


@main.command()
@_config
@one_line_errors
def run(config: Path) -> None:
    """Ask every request that has no response yet."""
    _work(config, ["run"])


@main.command()
@_config
@one_line_errors
def score(config: Path) -> None:
    """Score every response that has no score yet."""
    _work(config, ["score"])


@main.command()
@_config
@one_line_errors
def analyze(config: Path) -> None:
    """Fill the tables of the analysis anew: bins with intervals, transition zones."""
    _work(config, ["analyze"])


@main.command()
@_config
@one_line_errors
def report(config: Path) -> None:
    """Write report.md, report.html, figures, tables and summary.json from the database."""
    _work(config, ["report"])


@main.command(name="all")
@_config
@click.option("--force", type=click.Choice(PHASES), help="Do this phase and those after it anew.")
@one_line_errors
def everything(config: Path, force: str | None) -> None:
    """Do every phase, and skip what is there."""
    _work(config, list(PHASES), force)


@main.command()
@_config
@click.option(
    "-n", "n", type=click.IntRange(min=1), help="Examples to add to a bin; dataset.n_per_bin by default."
)
@click.option(
    "--bins", help="Bins to refine, counted from 1 and parted by commas; those of the zones by default."
)
@one_line_errors
def refine(config: Path, n: int | None, bins: str | None) -> None:
    """Add examples near the transition alone, ask and score them, and report both stages."""
    from kv_transition import phases

    with phases.opened(config) as group:
        click.echo(phases.refine(group, n, bins))
        for name in PHASES[1:]:
            _say(name, phases.PHASES[name](group))


@main.command()
@click.argument("first", type=click.Path(path_type=Path, exists=True))
@click.argument("second", type=click.Path(path_type=Path, exists=True))
@one_line_errors
def compare(first: Path, second: Path) -> None:
    """Show two experiment groups side by side: their folders or databases."""
    from kv_transition.paths import DATABASE
    from kv_transition.report.compare import compare as compared

    click.echo(compared(*(path / DATABASE if path.is_dir() else path for path in (first, second))))


def _work(config: Path, names: list[str], force: str | None = None) -> None:
    from kv_transition import phases

    with phases.opened(config, fresh=names[0] == "prepare", force=force) as group:
        for name in names:
            _say(name, phases.PHASES[name](group))


def _say(name: str, said: Any) -> None:
    click.echo(f"{name}: {said}")
