"""Search operating points on tune prompts, then simulate the controller on test prompts, once."""

from pathlib import Path
from typing import Literal

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@stage.protocol_option
@stage.params_option
@stage.one_line_errors
def main(model: str, protocol: Literal["v1", "v2"], params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.guard.hazard_model import HazardModel
    from kvguard.store.files import write_json
    from kvguard.store.tables import read_table, write_table
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.chapter.figures import evaluation_figures, model_title
    from kvguard.studies.catastrophes.evaluate.evaluation import evaluate
    from kvguard.studies.catastrophes.evaluate.operating_points import as_trials, save_operating_points
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.train.protocols import PROTOCOLS
    from kvguard.studies.catastrophes.train.splits import read_split

    params, rules = load_params(params_path), PROTOCOLS[protocol]
    title = model_title(model, params.spec(model).is_reference)
    source, features, trained = layout.traces(model), layout.features(model), layout.trained(model, protocol)
    out, metrics = layout.evaluated(model, protocol), layout.metrics("evaluate", model, protocol)
    plots, table = layout.plots("evaluate", model, protocol), layout.results("evaluate", model, protocol)
    settings = params.evaluate.model_dump() | {"seed": params.seed, "n_resamples": params.n_resamples}
    inputs = [source, features, trained]
    with tracking.run("evaluate", model=model, protocol=protocol, params=settings, inputs=inputs) as run:
        run.log_table(f"traces-{model}", source)
        traces = read_table("traces", source)
        found = evaluate(
            features,
            traces,
            read_split(rules, trained),
            HazardModel.load(trained),
            rules,
            params.evaluate,
            model=model,
            seed=params.seed,
            n_resamples=params.n_resamples,
            journal=out / "study.journal",
        )
        balanced = found.points["balanced"].params
        evaluation_figures(
            found.results.frame, found.pareto, found.controlled, traces, found.tokens, balanced, title, plots
        )
        found.results.write(table)
        write_table("pareto", found.pareto, out / "pareto.parquet")
        write_table("controlled", found.controlled, out / "controlled.parquet")
        points = save_operating_points(found.points, out)
        write_json(metrics, found.headline)
        run.log_metrics(found.headline)
        run.log_trials(as_trials(found.pareto))
        run.log_table(f"results-evaluate-{model}-{protocol}", table, context="output")
        for path in (out / "pareto.parquet", points, plots):
            run.log_artifact(path, "plots" if path == plots else None)
        run.log_outputs([out, metrics])
    overall = found.headline["controller-balanced"]["overall"]
    before, after = (overall[f"cbr_{how}"]["value"] for how in ("uncontrolled", "controlled"))
    click.echo(f"{out}: CBR {before:.3f} -> {after:.3f} at the balanced operating point")


if __name__ == "__main__":
    main()
