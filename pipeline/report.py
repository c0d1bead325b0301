"""Draw and lay out what every stage found: figures, a page with a trace explorer, tables for a paper."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.params_option
@stage.one_line_errors
def main(params_path: Path) -> None:  # noqa: D103
    from dataclasses import asdict

    from kvguard import tracking
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.chapter import build
    from kvguard.studies.catastrophes.params import load_params

    params = load_params(params_path)
    models = params.pair
    inputs = [
        *(layout.results(stage, model) for stage in build.STAGES for model in models),
        *(layout.scored(model, protocol) for model in models for protocol in params.protocols),
    ]
    settings = {"models": models, "protocols": params.protocols, "report": params.report.model_dump()}
    with tracking.run("report", params=settings, inputs=inputs) as run:
        built = build.build(params)
        run.log_metrics(asdict(built))
        run.log_artifact(build.PAGE)
        run.log_artifact(build.TABLES, "tables")
        run.log_artifact(layout.PLOTS, "plots")
        run.log_outputs([build.PAGE, build.TABLES, layout.PLOTS])
    click.echo(f"{build.PAGE}: {built.n_bytes / 1e6:.1f} MB, {built.n_traces} traces in its explorer")


if __name__ == "__main__":
    main()
