"""Train on one model's traces and forecast another's; the stage intervals says how well."""

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
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.protocols import HEADLINE
    from kvguard.studies.catastrophes.transfer import Side, transfer
    from kvguard.studies.catastrophes.variants import write_variants

    params = load_params(params_path)
    out = layout.compared("transfer", model)
    inputs = [
        path
        for name in (model, target)
        for path in (layout.traces(name), layout.features(name), layout.trained(name, HEADLINE))
    ]
    settings = {"target": target, "train": params.train.model_dump(), "seed": params.seed}
    with tracking.run("transfer", model=model, protocol=HEADLINE, params=settings, inputs=inputs) as run:
        variants = transfer(
            Side.load(model),
            Side.load(target),
            load_operating_point(layout.evaluated(target, HEADLINE), "balanced"),
            params.train,
            params.evaluate,
            params.thresholds,
            seed=params.seed,
        )
        write_variants(variants, out)
        run.log_outputs([out])
    click.echo(f"{out}: {model} -> {target}")


if __name__ == "__main__":
    main()
