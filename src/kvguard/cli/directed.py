"""Directed KV caches: documents read behind a prefix that is then cut away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvguard import stage
from kvguard.cli.asking import Asked, check_model, serving_options
from kvguard.cli.directed_gate import gate

if TYPE_CHECKING:
    from kvguard.studies.directed.experiment import Subject
    from kvguard.studies.directed.params import Params, Protocol

_EXAMPLES = """\b
Whether a model's caches are exact:
  kvguard directed gate --model path:DIR
\b
Scored, one experiment, its report:
  kvguard directed score --model reference_long --dataset reading -n 50 --condition bare --condition oracle
  kvguard directed experiment decoder-01 --model path:DIR --dataset path:squad2.jsonl -n 400
  kvguard directed report
\b
docs/directed.md says what is measured. Started again, a run goes on with what it has scored.
"""

_dataset = click.option(
    "--dataset",
    "datasets",
    multiple=True,
    required=True,
    help="A name from datasets of the settings, or path:FILE, JSON Lines with question, context, answers; "
    "again for another.",
)
_n = click.option(
    "-n", "n", type=click.IntRange(min=1), help="Examples of each data set; by default all that fit."
)
_out = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs") / "directed",
    show_default=True,
    help="Where results go.",
)
_settings = click.option(
    "--settings",
    "settings_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The study's settings that go before those that ship with kvguard (studies/directed/params.yaml).",
)


def _scoring(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (_settings, _out, _n, _dataset):
        command = option(command)
    return serving_options(command)


@click.group(epilog=_EXAMPLES)
def directed() -> None:
    """Does reading a document behind a prefix make its cache better, and survive compression better?"""


directed.add_command(gate)


@directed.command()
@_scoring
@click.option("--condition", "conditions", multiple=True, help="A condition; again for another; bare is one.")
@click.option("--press", "presses", multiple=True, help="A compressor at a ratio, snapkv@0.5 say; again.")
@stage.one_line_errors
def score(
    asked: Asked,
    datasets: tuple[str, ...],
    n: int | None,
    out: Path,
    settings_path: Path | None,
    conditions: tuple[str, ...],
    presses: tuple[str, ...],
) -> None:
    """Score answers from the caches that some conditions leave, and print their means."""
    from kvguard.store.parts import digest
    from kvguard.studies.directed.params import PLAIN, Protocol

    params, subject = _opened(asked, settings_path)
    protocol = Protocol(
        track="compression" if presses else "decoder",
        title="scored",
        about="from the shell",
        conditions=tuple(dict.fromkeys(("bare", *conditions))),
        settings=(PLAIN, *presses),
        metrics={"nll": "lower", **({"accuracy": "higher", "catastrophe": "lower"} if presses else {})},
    )
    name = f"score-{digest([protocol.conditions, protocol.settings])[:8]}"
    click.echo(_run(name, protocol, params, subject, datasets, n, out))


@directed.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_scoring
@click.option("--track", is_flag=True, help="Log each run in MLflow, in the repository's store.")
@stage.one_line_errors
def experiment(
    names: tuple[str, ...],
    asked: Asked,
    datasets: tuple[str, ...],
    n: int | None,
    out: Path,
    settings_path: Path | None,
    track: bool,
) -> None:
    """Run experiments of the study's settings: tables, results, the examples that a page shows."""
    from kvguard import tracking
    from kvguard.studies.directed.layout import Layout
    from kvguard.studies.directed.params import snapshot

    params, subject = _opened(asked, settings_path)
    protocols = {name: params.protocol(name) for name in names}
    for name, protocol in protocols.items():
        if not track:
            click.echo(_run(name, protocol, params, subject, datasets, n, out))
            continue
        logged = {"datasets": list(datasets), "n": n, **snapshot(protocol)}
        with tracking.run("directed", model=subject.name, protocol=name, params=logged) as run:
            click.echo(_run(name, protocol, params, subject, datasets, n, out, run.log_metrics))
            run.log_artifact(Layout(out, subject.name).experiment(name))


@directed.command()
@_out
@_settings
@stage.one_line_errors
def report(out: Path, settings_path: Path | None) -> None:
    """Lay out every experiment that was run: figures, tables, example pages, on one page."""
    from kvguard.studies.directed.chapter.build import build
    from kvguard.studies.directed.params import load_params

    click.echo(build(out, load_params(settings_path)))


def _opened(asked: Asked, settings_path: Path | None) -> tuple[Params, Subject]:
    """Return the study's settings, and the model that is asked."""
    from kvguard.studies.directed.experiment import Subject
    from kvguard.studies.directed.params import load_params

    model, known = asked.settings()
    check_model(known, model)
    return load_params(settings_path).on(asked.device), Subject(model, known.spec(model))


def _run(
    name: str,
    protocol: Protocol,
    params: Params,
    subject: Subject,
    datasets: tuple[str, ...],
    n: int | None,
    out: Path,
    on_metrics: Callable[[Any], None] = lambda metrics: None,
) -> str:
    """Score on every data set, draw conclusions, and return them as a table."""
    from kvguard.studies.directed.analysis.analyse import ALL, headline
    from kvguard.studies.directed.chapter.terminal import told
    from kvguard.studies.directed.experiment import conclude, score_dataset
    from kvguard.studies.directed.layout import Layout

    layout = Layout(out, subject.name)
    for dataset in datasets:
        with _progress(dataset) as on_progress:
            scored = score_dataset(name, protocol, subject, dataset, n, params, layout, on_progress)
        click.echo(f"{dataset}: {scored.n_made} rows scored, {scored.n_kept} found", err=True)
    results = conclude(name, protocol, params, layout)
    on_metrics(headline(results.frame, [ALL]))
    return f"{told(results, protocol)}\n\n{layout.experiment(name)}"


@contextmanager
def _progress(dataset: str) -> Iterator[Callable[[int, int], None]]:
    """Show the examples done, of how many."""
    from tqdm import tqdm

    with tqdm(desc=dataset, unit="example", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
