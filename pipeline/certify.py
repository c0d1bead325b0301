"""Certify how far each compressor may go, with and without a guard, and check it on held-out prompts."""

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
    from kvguard.studies.catastrophes.certify.stage import STAGE, certify, headline
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.protocols import HEADLINE

    params = load_params(params_path)
    trained, evaluated = layout.trained(model, HEADLINE), layout.evaluated(model, HEADLINE)
    inputs = [layout.traces(model), layout.features(model), trained, evaluated, layout.live(model)]
    settings = {"seed": params.seed, STAGE: params.certify.model_dump()}
    with tracking.run(STAGE, model=model, protocol=HEADLINE, params=settings, inputs=inputs) as run:
        results = certify(params, model)
        table, metrics, said = layout.results(STAGE, model), layout.metrics(STAGE, model), headline(results)
        results.write(table)
        write_json(metrics, said)
        run.log_metrics(said)
        run.log_table(f"results-{STAGE}-{model}", table, context="output")
        run.log_outputs([table, metrics])
    broken = results.frame.query("table == 'coverage' and metric == 'violations_known'")["value"].max()
    click.echo(f"{table}: certificates break their limits in at most {broken:.1%} of the draws")


if __name__ == "__main__":
    main()
