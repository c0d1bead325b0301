"""Run the live guard on fresh prompts, against no guard and other triggers, and time it."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@stage.params_option
@stage.one_line_errors
def main(model: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.models.load import load_model
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.live.names import STAGE
    from kvguard.studies.catastrophes.live.plan import Live
    from kvguard.studies.catastrophes.live.stage import live_latency, run_live
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.protocols import HEADLINE

    params = load_params(params_path)
    spec = params.spec(model)
    out = layout.live(model)
    sections = {"live_validate": params.live_validate, "guard": params.guard, "model": spec}
    settings = {name: section.model_dump() for name, section in sections.items()}
    trained, evaluated = layout.trained(model, HEADLINE), layout.evaluated(model, HEADLINE)
    inputs = [layout.prompts(model), layout.traces(model), layout.features(model), trained, evaluated]
    with tracking.run(STAGE, model=model, protocol=HEADLINE, params=settings, inputs=inputs) as run:
        live = Live.load(params, model)
        loaded = load_model(model, spec, params.device)
        done = run_live(live, loaded, out)
        latency = live_latency(live, loaded)
        latency.write(out / "latency.parquet")
        run.log_metrics(latency.metrics("latency"))
        run.log_table(f"live-{model}", done.table, context="output")
        run.log_outputs([out])
    click.echo(f"{out}: {done.n_made} parts made, {done.n_kept} kept")


if __name__ == "__main__":
    main()
