"""Draw the prompts that one model is asked."""

from pathlib import Path

import click

from kvguard.commands import edge


@click.command(help=__doc__)
@edge.model_option
@edge.params_option
@edge.one_line_errors
def main(model: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import layout, tracking
    from kvguard.commands.plan import draw_prompts
    from kvguard.config import load_params
    from kvguard.models.availability import check_available
    from kvguard.traces import write_table

    params = load_params(params_path)
    spec = params.spec(model)
    settings = {"seed": params.seed, "sample": params.sample.model_dump(), "model": spec.model_dump()}
    out = layout.prompts(model)
    check_available(model, spec, params.device)
    with tracking.run("sample", model=model, params=settings) as run:
        prompts = draw_prompts(params, model)
        write_table("prompts", prompts, out)
        run.log_metrics({"n_prompts": len(prompts), "prompt_characters": prompts["prompt"].str.len().mean()})
        run.log_table(f"prompts-{model}", out, context="output")
        run.log_outputs([out])
    click.echo(f"{out}: {len(prompts)} {spec.task} prompts")


if __name__ == "__main__":
    main()
