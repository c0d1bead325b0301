"""Take features, and parts of the controller, away and see what is left."""

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
    from kvguard.store.files import write_json
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.ablate import ablate
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.train.protocols import PROTOCOLS
    from kvguard.studies.catastrophes.train.splits import read_split

    params = load_params(params_path)
    source, features = layout.traces(model), layout.features(model)
    trained, evaluated = layout.trained(model, "v2"), layout.evaluated(model, "v2")
    out, metrics = layout.results("ablate", model), layout.metrics("ablate", model)
    settings = {"ablate": params.ablate.model_dump(), "train": params.train.model_dump(), "seed": params.seed}
    inputs = [source, features, trained, evaluated]
    with tracking.run("ablate", model=model, protocol="v2", params=settings, inputs=inputs) as run:
        run.log_table(f"features-{model}", features)
        results = ablate(
            features,
            read_judged(source),
            read_split(PROTOCOLS["v2"], trained),
            HazardModel.load(trained),
            load_operating_point(evaluated, "balanced"),
            params.train,
            params.evaluate,
            params.ablate,
            model=model,
            seed=params.seed,
            n_resamples=params.n_resamples,
        )
        results.write(out)
        headline = results.metrics("features", "controllers")
        write_json(metrics, headline)
        run.log_metrics(results.metrics("features", "controllers", "hysteresis", "thresholds"))
        run.log_table(f"results-ablate-{model}", out, context="output")
        run.log_outputs([out, metrics])
    auroc = {name: headline["features"][name]["auroc"]["value"] for name in ("full", "position_only")}
    click.echo(f"{out}: AUROC {auroc['full']:.3f}, of the position alone {auroc['position_only']:.3f}")


if __name__ == "__main__":
    main()
