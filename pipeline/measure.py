"""Say what each compressor does to a model, against no compression and against random eviction."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@stage.params_option
@stage.one_line_errors
def main(model: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.store.files import write_json
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.measure.stage import STAGE, measure
    from kvguard.studies.catastrophes.params import load_params

    params = load_params(params_path)
    source, out, metrics = layout.traces(model), layout.results(STAGE, model), layout.metrics(STAGE, model)
    settings = {"seed": params.seed, "n_resamples": params.n_resamples}
    with tracking.run(STAGE, model=model, params=settings, inputs=[source]) as run:
        run.log_table(f"traces-{model}", source)
        results = measure(layout.generated(model), model, params.n_resamples, params.seed)
        results.write(out)
        headline = results.metrics("outcomes", "onsets")
        write_json(metrics, headline)
        run.log_metrics(headline)
        run.log_table(f"{STAGE}-{model}", out, context="output")
        run.log_outputs([out, metrics])
    click.echo(f"{out}: {len(results.frame)} numbers on {source}")


if __name__ == "__main__":
    main()
