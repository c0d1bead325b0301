"""Answer every prompt under every condition, keeping the parts that earlier runs finished."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@stage.params_option
@stage.one_line_errors
def main(model: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.judging.judge import read_judged
    from kvguard.models.availability import check_available
    from kvguard.store.tables import read_table
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.generate import plan_sweep
    from kvguard.studies.catastrophes.measure.outcomes import outcomes, overall
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.sweep.run import run_sweep

    params = load_params(params_path)
    check_available(model, params.spec(model), params.device)
    source, out = layout.prompts(model), layout.generated(model)
    sweep = plan_sweep(params, model, read_table("prompts", source))
    sections = {
        "model": params.spec(model),
        "task": params.task(model),
        "generate": params.generate,
        "catastrophes": params.catastrophes,
    }
    settings = {name: section.model_dump() for name, section in sections.items()}
    with tracking.run("generate", model=model, params=settings, inputs=[source]) as run:
        run.log_table(f"prompts-{model}", source)
        result = run_sweep(sweep, out)
        traces = read_judged(result.traces)
        run.log_metrics({"parts_made": result.n_made, "parts_kept": result.n_kept, **overall(traces)})
        run.log_metrics({f"{c}.{r:g}": row for (c, r), row in outcomes(traces).to_dict("index").items()})
        run.log_table(f"traces-{model}", result.traces, context="output")
        run.log_outputs([out])
    click.echo(f"{out}: {len(traces)} traces; {result.n_made} parts made, {result.n_kept} kept")


if __name__ == "__main__":
    main()
