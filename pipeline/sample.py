"""Draw the prompts that one model is asked."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@stage.params_option
@stage.one_line_errors
def main(model: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.models.availability import check_available
    from kvguard.store.tables import write_table
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.generate import draw_prompts
    from kvguard.studies.catastrophes.params import load_params

    params = load_params(params_path)
    spec = params.spec(model)
    task = params.task(model)
    sections = {"sample": params.sample, "model": spec, "task": task}
    settings = {"seed": params.seed, **{name: section.model_dump() for name, section in sections.items()}}
    out = layout.prompts(model)
    check_available(model, spec, params.device)
    with tracking.run("sample", model=model, params=settings) as run:
        prompts = draw_prompts(params, model)
        write_table("prompts", prompts, out)
        characters = prompts["prompt"].map(lambda prompt: len(prompt["text"])).mean()
        run.log_metrics({"n_prompts": len(prompts), "prompt_characters": characters})
        run.log_table(f"prompts-{model}", out, context="output")
        run.log_outputs([out])
    click.echo(f"{out}: {len(prompts)} {task.name} prompts")


if __name__ == "__main__":
    main()
