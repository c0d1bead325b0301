"""Simulate the controller on test prompts, per compressor and ratio."""

from pathlib import Path
from typing import Literal

import click

from kvguard.commands import edge


@click.command(help=__doc__)
@edge.model_option
@edge.protocol_option
@edge.params_option
@edge.one_line_errors
def main(model: str, protocol: Literal["v1", "v2"], params_path: Path) -> None:  # noqa: D103
    from kvguard import layout, tracking
    from kvguard.config import load_params
    from kvguard.guard.simulate import evaluate
    from kvguard.hazard.train import HazardModel
    from kvguard.report.figures import evaluation_figures, model_title
    from kvguard.traces import read_table, write_table

    params = load_params(params_path)
    spec = params.spec(model)
    source, features, trained = layout.traces(model), layout.features(model), layout.trained(model, protocol)
    out, metrics = layout.evaluated(model, protocol), layout.metrics("evaluate", model, protocol)
    plots, settings = layout.plots("evaluate", model, protocol), params.evaluate.model_dump()
    inputs = [source, features, trained]
    with tracking.run("evaluate", model=model, protocol=protocol, params=settings, inputs=inputs) as run:
        run.log_table(f"traces-{model}", source)
        split = read_table("split", trained / "split.parquet")
        traces = read_table("traces", source)
        evaluation = evaluate(features, traces, split, HazardModel.load(trained), params.evaluate)
        write_table("summary", evaluation.summary, out)
        layout.write_json(metrics, evaluation.metrics)
        title = model_title(model, spec.is_reference)
        evaluation_figures(evaluation, features, traces, params.evaluate, title, plots)
        run.log_metrics(evaluation.metrics)
        run.log_table(f"summary-{model}-{protocol}", out, context="output")
        run.log_artifact(plots, "plots")
        run.log_outputs([out, metrics])
    overall = evaluation.metrics["overall"]
    click.echo(f"{out}: CBR {overall['cbr_uncontrolled']:.3f} -> {overall['cbr_controlled']:.3f}")


if __name__ == "__main__":
    main()
