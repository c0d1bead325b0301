"""Measure with intervals what ablate, transfer and live-validate made; nothing is fitted or generated."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@click.option("--to", "target", required=True, help="The model that its hazard model was transferred to.")
@stage.params_option
@stage.one_line_errors
def main(model: str, target: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.store.files import write_json
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.intervals.stage import measure_intervals
    from kvguard.studies.catastrophes.live.results import headline
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.protocols import HEADLINE

    params = load_params(params_path)
    stages = ("ablate", "transfer", "live-validate")
    inputs = [*(layout.compared(of, model) for of in stages[:2]), layout.live(model)]
    settings = {"target": target, "seed": params.seed, "n_resamples": params.n_resamples}
    with tracking.run("intervals", model=model, protocol=HEADLINE, params=settings, inputs=inputs) as run:
        ablated, transferred, live = found = measure_intervals(model, target, params)
        numbers = (
            ablated.metrics("features", "controllers"),
            transferred.metrics("transfer"),
            headline(live),
        )
        for of, results, said in zip(stages, found, numbers, strict=True):
            table, metrics = layout.results(of, model), layout.metrics(of, model)
            results.write(table)
            write_json(metrics, said)
            run.log_metrics(said)
            run.log_table(f"results-{of}-{model}", table, context="output")
            run.log_outputs([table, metrics])
        run.log_metrics(ablated.metrics("hysteresis", "thresholds"))
    cbr = {name: values["cbr"]["value"] for name, values in numbers[2]["policies-prefill"].items()}
    what = ", ".join(f"{name} {value:.3f}" for name, value in cbr.items())
    click.echo(f"{layout.results('ablate', model).parent}: live CBR {what}")


if __name__ == "__main__":
    main()
