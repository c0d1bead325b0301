"""Run the live guard on fresh prompts, against no guard and other triggers, and hold the forecast to it."""

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
    from kvguard.models.load import load_model
    from kvguard.store.files import write_json
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.live.plan import PROTOCOL, Live
    from kvguard.studies.catastrophes.live.stage import (
        STAGE,
        headline,
        live_latency,
        live_results,
        run_live,
    )
    from kvguard.studies.catastrophes.params import load_params

    params = load_params(params_path)
    spec = params.spec(model)
    out, metrics = layout.live(model), layout.metrics(STAGE, model)
    sections = {"live_validate": params.live_validate, "guard": params.guard, "model": spec}
    settings = {name: section.model_dump() for name, section in sections.items()}
    trained, evaluated = layout.trained(model, PROTOCOL), layout.evaluated(model, PROTOCOL)
    inputs = [layout.prompts(model), layout.traces(model), layout.features(model), trained, evaluated]
    with tracking.run(STAGE, model=model, protocol=PROTOCOL, params=settings, inputs=inputs) as run:
        live = Live.load(params, model)
        loaded = load_model(model, spec, params.device)
        done = run_live(live, loaded, out)
        results = live_results(live, read_judged(done.table, kind="live"), params.n_resamples, params.seed)
        latency = live_latency(live, loaded)
        results.write(out / "results.parquet")
        latency.write(out / "latency.parquet")
        found = headline(results)
        write_json(metrics, found)
        run.log_metrics(found | latency.metrics("latency"))
        run.log_table(f"live-{model}", done.table, context="output")
        run.log_table(f"results-{STAGE}-{model}", out / "results.parquet", context="output")
        run.log_outputs([out, metrics])
    cbr = {name: numbers["cbr"]["value"] for name, numbers in found["policies-prefill"].items()}
    what = ", ".join(f"{name} {value:.3f}" for name, value in cbr.items())
    click.echo(f"{out}: {done.n_made} parts made, {done.n_kept} kept; CBR {what}")


if __name__ == "__main__":
    main()
