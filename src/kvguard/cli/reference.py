"""The embedded reference models."""

from pathlib import Path

import click

from kvguard import stage
from kvguard.cli.asking import Asked, asking_options, model_options


@click.group()
def reference() -> None:
    """Train the embedded reference models again, or measure them."""


@reference.command()
@click.argument("texts", type=click.Choice(["problems", "long", "instruct"]), default="problems")
@click.option("--architecture", type=click.Choice(["qwen2", "llama"]), default="qwen2", show_default=True)
@click.option(
    "--gsm8k",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="GSM8K's train.jsonl: running text among the problems, and for a new tokenizer.",
)
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder of weights and tokenizer to go on from; made anew by default.",
)
@click.option(
    "--run-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Checkpoints; an existing one is resumed. runs/reference-ARCHITECTURE-TEXTS by default.",
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
    texts: str,
    architecture: str,
    gsm8k: Path | None,
    start: Path | None,
    run_folder: Path | None,
    out: Path | None,
    total_tokens: int | None,
    seed: int,
    compiled: bool,
) -> None:
    """Train a reference model, on a GPU if there is one, and export it; resumes, logs to MLflow.

    TEXTS are word problems with demonstrations (problems, the default), texts that grow to the whole window
    with questions about facts far back in them (long), or instructions on short texts (instruct), which get a
    tokenizer of their own.
    """
    import dataclasses
    import logging

    from kvguard import tracking
    from kvguard.models.reference.train import OF_TEXTS, TrainSettings, export
    from kvguard.models.reference.train import train as train_model

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder = run_folder or Path("runs") / f"reference-{architecture}-{texts}"
    settings = TrainSettings(
        architecture=architecture,
        run_folder=folder,
        gsm8k=gsm8k,
        texts=texts,
        start=start,
        seed=seed,
        compile=compiled,
        **OF_TEXTS[texts],
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


@reference.command()
@asking_options
@click.option(
    "--run-folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/finetune"),
    show_default=True,
    help="Checkpoints; an existing one is resumed.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the adapter goes; RUN_FOLDER/adapter by default.",
)
@click.option("-n", "n", type=click.IntRange(min=1), help="Problems, the first of the file; all by default.")
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True, help="Of the adapter.")
@click.option(
    "--max-length", type=click.IntRange(min=8), default=320, show_default=True, help="Tokens of a problem."
)
@click.option("--seed", type=int, default=0, show_default=True)
@stage.one_line_errors
def finetune(
    asked: Asked,
    run_folder: Path,
    out: Path | None,
    n: int | None,
    epochs: float,
    rank: int,
    max_length: int,
    seed: int,
) -> None:
    """Fine-tune a language model on a task's TRAINING problems (--task-source): a LoRA adapter.

    \b
    kvguard reference finetune --model path:DIR --task gsm8k_zero_shot --task-source train.jsonl
    kvguard run --model path:DIR --adapter path:runs/finetune/adapter --preset experiment-001
    """
    import dataclasses

    from kvguard import tracking
    from kvguard.errors import KvguardError
    from kvguard.models.load import load_model
    from kvguard.models.reference.finetune import FinetuneSettings, lessons
    from kvguard.models.reference.finetune import finetune as train_adapter
    from kvguard.tasks.gsm8k import Gsm8k

    model, params = asked.settings()
    task = params.task(model)
    if not isinstance(task, Gsm8k) or task.source is None:
        raise KvguardError(
            "--task-source: name the training problems of gsm8k or gsm8k_zero_shot (GSM8K's train.jsonl): "
            "no other task has solutions to learn from, and the hub's split is the test"
        )
    settings = FinetuneSettings(
        run_folder, epochs, rank=rank, alpha=2 * rank, max_length=max_length, seed=seed
    )
    out = out or run_folder / "adapter"
    loaded = load_model(model, params.spec(model), params.device)
    taught = lessons(loaded, task, task.all()[:n], max_length)
    click.echo(f"{model}: {len(taught)} problems of at most {max_length} tokens", err=True)
    with tracking.run("finetune", model=model, params=dataclasses.asdict(settings)) as run:
        steps = train_adapter(loaded, taught, settings, out, run.log_metrics)
        run.log_outputs([out])
    click.echo(f"{out}: an adapter after {steps} steps; --model {asked.model} --adapter path:{out}")
