"""The embedded reference models."""

from pathlib import Path

import click

from kvguard import stage
from kvguard.cli.asking import Asked, model_options


@click.group()
def reference() -> None:
    """Train the embedded reference models again, or measure them."""


@reference.command()
@click.option("--architecture", type=click.Choice(["qwen2", "llama"]), required=True)
@click.option(
    "--gsm8k",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="GSM8K's train.jsonl: running text among the problems, and for a new tokenizer.",
)
@click.option(
    "--texts",
    type=click.Choice(["problems", "long"]),
    default="problems",
    show_default=True,
    help="long: texts that grow to the whole window, with questions about facts far back in them.",
)
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder of weights and tokenizer to go on from; made anew by default.",
)
@click.option(
    "--run-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Checkpoints; an existing one is resumed. runs/reference-ARCHITECTURE[-long] by default.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where weights and tokenizer go; RUN_FOLDER/export by default.",
)
@click.option("--total-tokens", type=click.IntRange(min=1), help="The token budget.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile the step: faster after a minute, needs g++."
)
@stage.one_line_errors
def train(
    architecture: str,
    gsm8k: Path | None,
    texts: str,
    start: Path | None,
    run_folder: Path | None,
    out: Path | None,
    total_tokens: int | None,
    seed: int,
    compiled: bool,
) -> None:
    """Train a reference model, on a GPU if there is one, and export it; resumes, logs to MLflow."""
    import dataclasses
    import logging

    from kvguard import tracking
    from kvguard.models.reference.train import LONG, TrainSettings, export
    from kvguard.models.reference.train import train as train_model

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder = run_folder or Path("runs") / f"reference-{architecture}{'-long' * (texts == 'long')}"
    settings = TrainSettings(
        architecture=architecture,
        run_folder=folder,
        gsm8k=gsm8k,
        texts=texts,
        start=start,
        seed=seed,
        compile=compiled,
        **(LONG if texts == "long" else {}),
    )
    if total_tokens is not None:
        settings = dataclasses.replace(settings, total_tokens=total_tokens)
    out = out or folder / "export"
    with tracking.run("reference", model=architecture, params=dataclasses.asdict(settings)) as run:
        train_model(settings, run.log_metrics)
        step = export(settings, out)
        run.log_outputs([out])
    click.echo(f"{out}: weights and tokenizer at step {step}")


@reference.command("train-encdec")
@click.option("--shape", type=click.Choice(["t5", "t5_narrow"]), required=True)
@click.option(
    "--run-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Checkpoints; an existing one is resumed. runs/reference-SHAPE by default.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where weights and tokenizer go; RUN_FOLDER/export by default.",
)
@click.option("--steps", type=click.IntRange(min=1), default=1200, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@stage.one_line_errors
def train_encdec(shape: str, run_folder: Path | None, out: Path | None, steps: int, seed: int) -> None:
    """Train a reference encoder-decoder on a CPU, and export it; resumes, logs to MLflow."""
    import dataclasses
    import logging

    from kvguard import tracking
    from kvguard.models.reference.encdec import EncDecSettings, accuracy, export, train

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder = run_folder or Path("runs") / f"reference-{shape}"
    settings = EncDecSettings(shape, folder, steps, seed)
    out = out or folder / "export"
    with tracking.run("reference", model=shape, params=dataclasses.asdict(settings)) as run:
        model = train(settings, run.log_metrics)
        scores = accuracy(model, 200, seed)
        run.log_metrics(scores, steps)
        step = export(settings, out)
        run.log_outputs([out])
    told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    click.echo(f"{out}: weights and tokenizer at step {step}; {told}")


@reference.command()
@model_options
@click.option("-n", "n", type=click.IntRange(min=1), default=500, show_default=True, help="Prompts.")
@stage.one_line_errors
def evaluate(asked: Asked, n: int) -> None:
    """Measure a model without compression on held-out arithmetic, family by family."""
    import dataclasses
    import tempfile

    from kvguard.judging.catastrophes import is_catastrophic
    from kvguard.judging.judge import read_judged
    from kvguard.report.terminal import table
    from kvguard.studies.catastrophes.generate import draw_prompts, plan_sweep
    from kvguard.sweep.run import run_sweep
    from kvguard.sweep.settings import Preset
    from kvguard.tasks import Sample

    model, params = dataclasses.replace(asked, task="arithmetic").settings()
    prompts = draw_prompts(params, model, n)
    sweep = plan_sweep(params, model, prompts, Preset(compressors=("none",)))
    with tempfile.TemporaryDirectory(prefix="kvguard-") as folder:
        traces = read_judged(run_sweep(sweep, Path(folder)).traces)
    traces["failed"] = is_catastrophic(traces)
    family = {row["prompt_id"]: Sample.of(row).metadata["family"] for _, row in prompts.iterrows()}
    groups = [*traces.groupby(traces["prompt_id"].map(family)), ("all", traces)]
    rows = [[name, len(g), float(g["correct"].mean()), float(g["failed"].mean())] for name, g in groups]
    click.echo(table(["family", "prompts", "accuracy", "CBR"], rows))
