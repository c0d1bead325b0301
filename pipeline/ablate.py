"""Fit the hazard model with fewer features; the stage intervals says what is left."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@stage.params_option
@stage.one_line_errors
def main(model: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.guard.bundle import load_operating_point
    from kvguard.guard.hazard_model import HazardModel
    from kvguard.judging.judge import read_judged
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.ablate import ablate
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
    from kvguard.studies.catastrophes.train.splits import read_split
    from kvguard.studies.catastrophes.variants import write_variants

    params = load_params(params_path)
    source, features = layout.traces(model), layout.features(model)
    trained, evaluated = layout.trained(model, HEADLINE), layout.evaluated(model, HEADLINE)
    out = layout.compared("ablate", model)
    settings = {"thresholds": params.thresholds, "train": params.train.model_dump(), "seed": params.seed}
    inputs = [source, features, trained, evaluated]
    with tracking.run("ablate", model=model, protocol=HEADLINE, params=settings, inputs=inputs) as run:
        run.log_table(f"features-{model}", features)
        variants = ablate(
            features,
            read_judged(source),
            read_split(PROTOCOLS[HEADLINE], trained),
            HazardModel.load(trained),
            load_operating_point(evaluated, "balanced"),
            params.train,
            params.evaluate,
            params.thresholds,
            model=model,
            seed=params.seed,
        )
        write_variants(variants, out)
        run.log_outputs([out])
    click.echo(f"{out}: {', '.join(variants)}")


if __name__ == "__main__":
    main()
