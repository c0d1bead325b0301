"""Search operating points of the controller on tune prompts."""

from pathlib import Path

import click

from kvguard import stage
from kvguard.studies.catastrophes.options import protocol_option


@click.command(help=__doc__)
@stage.model_option
@protocol_option
@stage.params_option
@stage.one_line_errors
def main(model: str, protocol: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.guard.hazard_model import HazardModel
    from kvguard.judging.judge import read_judged
    from kvguard.store.tables import write_table
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.evaluate.evaluation import evaluate
    from kvguard.studies.catastrophes.evaluate.operating_points import as_trials, save_operating_points
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.protocols import PROTOCOLS
    from kvguard.studies.catastrophes.train.splits import read_split

    params, rules = load_params(params_path), PROTOCOLS[protocol]
    source, features, trained = layout.traces(model), layout.features(model), layout.trained(model, protocol)
    out = layout.evaluated(model, protocol)
    settings = params.evaluate.model_dump() | {"seed": params.seed}
    inputs = [source, features, trained]
    with tracking.run("evaluate", model=model, protocol=protocol, params=settings, inputs=inputs) as run:
        run.log_table(f"traces-{model}", source)
        found = evaluate(
            features,
            read_judged(source),
            read_split(rules, trained),
            HazardModel.load(trained),
            rules,
            params.evaluate,
            model=model,
            seed=params.seed,
            journal=out / "study.journal",
        )
        found.facts.write(layout.facts("evaluate", model, protocol))
        write_table("pareto", found.pareto, out / "pareto.parquet")
        points = save_operating_points(found.points, out)
        run.log_metrics(found.facts.metrics("operating_points"))
        run.log_trials(as_trials(found.pareto))
        run.log_artifact(out / "pareto.parquet")
        run.log_artifact(points)
        run.log_outputs([out])
    balanced = found.points["balanced"]
    click.echo(
        f"{out}: {len(found.pareto)} trials; balanced on tune prompts: reduction {balanced.reduction:.3f}, "
        f"false positives {balanced.false_positive_rate:.3f}"
    )


if __name__ == "__main__":
    main()
