"""`kvguard instructions generate`: more examples, written by a model."""

from pathlib import Path

import click

from kvguard import stage


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-n", "n", type=click.IntRange(min=1), default=30, show_default=True, help="Rows of OUT.")
@click.option(
    "--url",
    default=None,
    help="anthropic (the default), openai, anthropic:URL, openai:URL, or a URL that speaks as OpenAI's.",
)
@click.option(
    "--command", "program", metavar="PROGRAM", help="Ask a program instead: the question on its input."
)
@click.option("--model", help="The model's name at the endpoint; claude-sonnet-4-5-20250929 by default.")
@click.option("--suite", type=click.Choice(["ifeval", "ifbench"]), default="ifeval", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=17, show_default=True)
@stage.one_line_errors
def generate(
    out: Path, n: int, url: str | None, program: str | None, model: str | None, suite: str, seed: int
) -> None:
    """Have a model write examples to OUT, JSONL; what the rules cannot check is left out.

    An OUT that has rows already keeps them, and gets more.
    """
    from kvguard.studies.instructions import generate as study
    from kvguard.studies.instructions.judge import asker

    url = "anthropic" if url is None and program is None else url
    writer = asker(url, program, model or study.MODEL, study.MAX_TOKENS)
    work = study.Generator(writer, out, seed, lambda line: click.echo(line, err=True), suite)
    work.fill(n)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(work.counts.items())) or "nothing to do"
    click.echo(f"{out}: {work.rows} examples ({counts})")
