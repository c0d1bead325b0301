"""Train on one model's traces and test on another's, against the other's own hazard model."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@click.option("--to", "target", required=True, help="The model that is tested.")
@stage.params_option
@stage.one_line_errors
def main(model: str, target: str, params_path: Path) -> None:  # noqa: D103
    if model == target:
        raise click.UsageError(f"--to {target} is also the model: name another")
    from kvguard import tracking
    from kvguard.guard.bundle import load_operating_point
    from kvguard.store.files import write_json
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.transfer import Side, transfer

    params = load_params(params_path)
    out, metrics = layout.results("transfer", model), layout.metrics("transfer", model)
    inputs = [
        path
        for name in (model, target)
        for path in (layout.traces(name), layout.features(name), layout.trained(name, "v2"))
    ]
    settings = {"target": target, "train": params.train.model_dump(), "seed": params.seed}
    with tracking.run("transfer", model=model, protocol="v2", params=settings, inputs=inputs) as run:
        results = transfer(
            Side.load(model),
            Side.load(target),
            load_operating_point(layout.evaluated(target, "v2"), "balanced"),
            params.train,
            params.evaluate,
            params.thresholds,
            seed=params.seed,
            n_resamples=params.n_resamples,
        )
        results.write(out)
        write_json(metrics, results.metrics("transfer"))
        run.log_metrics(results.metrics("transfer"))
        run.log_table(f"results-transfer-{model}", out, context="output")
        run.log_outputs([out, metrics])
    click.echo(f"{out}: {model} -> {target}")


if __name__ == "__main__":
    main()
