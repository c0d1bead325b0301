"""Does a model still do what it was told once its cache has been evicted?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvguard import stage
from kvguard.cli.asking import Asked, check_model, serving_options
from kvguard.cli.instructions_generate import generate

if TYPE_CHECKING:
    from kvguard.store.results import Results
    from kvguard.studies.instructions.params import Params

EXAMPLES = """\b
As it is typed:
  kvguard instructions --model reference_instruct --suite embedded --protect instructions
  kvguard instructions --model path:DIR --suite ifeval -n 100 --conditions streaming_llm@0.5,random@0.5
  kvguard instructions report runs/instructions/NAME
"""


class _RunByDefault(click.Group):
    """A group whose options without a command are those of ``run``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault, epilog=EXAMPLES)
def instructions() -> None:
    """Ask for instructions to be followed, and evict from the cache after the model has read them.

    Without a command it is `run`: see `kvguard instructions run --help`.
    """


instructions.add_command(generate)


@instructions.command()
@serving_options
@click.option(
    "--settings",
    "settings_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file of settings of the study, such as studies/instructions/params.yaml; options go before it.",
)
@click.option("--suite", help="embedded, ifeval or ifbench.")
@click.option("--suite-path", metavar="FILE", help="The suite's prompts, JSONL.")
@click.option("-n", "n", type=click.IntRange(min=1), help="Examples; 30 by default.")
@click.option(
    "--placement",
    type=click.Choice(["user", "system"]),
    help="Where the instructions stand: as the suite has them (user), or in a system prompt.",
)
@click.option(
    "--conditions",
    metavar="LIST",
    help="Arms, with commas: baseline, PRESS@RATIO, PRESS:TOKENS, streaming_llm:100+100, text_removal@RATIO; "
    "each may end in +protected:instructions, +protected:system, +fair, +guard:restore or +guard:rollback.",
)
@click.option(
    "--protect",
    "protect",
    multiple=True,
    type=click.Choice(["instructions", "system"]),
    help="Every condition also with these tokens never evicted, at the same budget; again for the other.",
)
@click.option("--fair", is_flag=True, help="Every condition also with equal shares of every instruction.")
@click.option(
    "--guard",
    "guards",
    multiple=True,
    type=click.Choice(["restore", "rollback"]),
    help="Every condition also under guard; again for the other action.",
)
@click.option("--bundle", metavar="FOLDER", help="The guard that watches all answers, models/reference say.")
@click.option("--judge", "judge_url", metavar="URL", help="An endpoint that judges what no rule can check.")
@click.option("--judge-command", metavar="PROGRAM", help="A program that does so: the question on its input.")
@click.option(
    "--judge-model", metavar="NAME", help="The judge's name at its endpoint; Claude Haiku by default."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Of an answer; 512 by default.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows decoded together; 64 by default.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the choice of examples and of random eviction.")
@click.option(
    "--stop-when",
    type=click.FloatRange(0, 2, min_open=True),
    metavar="WIDTH",
    help="End once the interval of every difference to the baseline is this narrow, 0.2 say.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="A folder; runs/instructions/..."
)
@click.option("--track", is_flag=True, help="Log the run to MLflow.")
@stage.one_line_errors
def run(
    asked: Asked,
    settings_path: Path | None,
    conditions: str | None,
    protect: tuple[str, ...],
    fair: bool,
    guards: tuple[str, ...],
    judge_url: str | None,
    judge_command: str | None,
    judge_model: str | None,
    out: Path | None,
    track: bool,
    **given: Any,
) -> None:
    """Ask a model the examples of a suite under each arm; started again, it goes on where it stopped."""
    from kvguard.models.load import load_model
    from kvguard.studies.instructions import layout
    from kvguard.studies.instructions.params import load_params
    from kvguard.studies.instructions.prepare import plan, prepare
    from kvguard.studies.instructions.run import run as run_study

    given = {name: value for name, value in given.items() if value is not None}
    if conditions is not None:
        given["conditions"] = tuple(text for text in conditions.split(",") if text.strip())
    treatments = [f"protected:{what}" for what in protect] + ["fair"] * fair
    treatments += [f"guard:{action}" for action in guards]
    if treatments:
        given["treatments"] = tuple(treatments)
    judge = {"url": judge_url, "command": judge_command, "model": judge_model}
    given["judge"] = {name: value for name, value in judge.items() if value is not None}
    params = load_params(settings_path, given)
    model, root = asked.settings()
    check_model(root, model)
    planned = plan(params, root.compressors)
    folder = out or layout.folder_of(model, params.suite)
    loaded = load_model(model, root.spec(model), root.device)
    study, settings = prepare(planned, loaded, root.catastrophes)
    with _tracked(track, model, params) as log:
        ended = run_study(study, folder, settings, lambda line: click.echo(line, err=True))
        if ended.stopped_after is not None:
            click.echo(f"clear after {ended.stopped_after} of {len(study.examples)} examples", err=True)
        log(folder, _reported(folder, params))
    click.echo(f"\n{folder}: {ended.n_made} results made, {ended.n_kept} kept; {layout.page(folder)}")


@instructions.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--resamples", type=click.IntRange(min=100), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=17, show_default=True, help="Of the resamples.")
@stage.one_line_errors
def report(folder: Path, resamples: int, seed: int) -> None:
    """Write the report of a run anew, whether it has ended or not."""
    from kvguard.studies.instructions import layout
    from kvguard.studies.instructions.params import Params

    _reported(folder, Params(n_resamples=resamples, seed=seed))
    click.echo(f"\n{layout.page(folder)}")


def _reported(folder: Path, params: Params) -> Results:
    """Write a run's report, and print what was followed under each arm."""
    from kvguard.report.terminal import table
    from kvguard.studies.instructions.chapter.build import build

    results = build(folder, params.n_resamples, params.seed)
    found = results.metrics("followed")["followed"]
    columns = ("n", "prompt_strict", "instruction_strict", "forgotten", "cbr", "removed")
    heads = ("arm", "n", "prompt strict", "instruction strict", "forgotten", "CBR", "removed")
    rows = [
        [arm, int(one["n"]["value"]), *(one[name]["value"] for name in columns[1:])]
        for arm, one in found.items()
    ]
    click.echo(table(heads, rows))
    return results


@contextmanager
def _tracked(track: bool, model: str, params: Params) -> Iterator[Any]:
    """Yield what logs a run's folder and numbers: to MLflow, or nowhere."""
    from kvguard.studies.instructions import layout
    from kvguard.studies.instructions.statistics.measure import STAGE

    if not track:
        yield lambda folder, results: None
        return
    from kvguard import tracking

    with tracking.run(STAGE, model=model, params=params.model_dump(mode="json")) as active:

        def log(folder: Path, results: Results) -> None:
            active.log_metrics(results.metrics("followed", "strategy", "foreseen"))
            for path in (layout.page(folder), layout.results(folder), layout.metrics(folder)):
                active.log_artifact(path)
            for path in (layout.tables(folder), layout.figures(folder)):
                active.log_artifact(path, path.name)
            active.log_outputs([layout.results(folder)])

        yield log
