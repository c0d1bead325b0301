"""Train the hazard model on train prompts, stopping early on tune prompts."""

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
    import pandas as pd

    from kvguard import layout, tracking
    from kvguard.config import load_params
    from kvguard.hazard.train import train
    from kvguard.report.figures import model_title, training_figures
    from kvguard.traces import read_table, write_table

    params = load_params(params_path)
    spec = params.spec(model)
    source, features = layout.traces(model), layout.features(model)
    out, metrics = layout.trained(model, protocol), layout.metrics("train", model, protocol)
    plots, settings = (
        layout.plots("train", model, protocol),
        params.train.model_dump() | {"seed": params.seed},
    )
    inputs = [source, features]
    with tracking.run("train", model=model, protocol=protocol, params=settings, inputs=inputs) as run:
        run.log_table(f"features-{model}", features)
        traces = read_table("traces", source, ["trace_id", "prompt_id", "catastrophes"])
        training = train(features, traces, params.train, params.seed, protocol)
        training.model.save(out)
        write_table("split", training.split, out / "split.parquet")
        layout.write_json(metrics, training.metrics)
        training_figures(training, model_title(model, spec.is_reference), plots)
        run.log_metrics(training.metrics)
        run.log_table(f"split-{model}-{protocol}", out / "split.parquet", context="output")
        run.log_artifact(plots, "plots")
        example = pd.DataFrame(training.test.features[:5], columns=list(training.model.features))
        run.log_model(training.model.booster, example, f"hazard-{model}-{protocol}")
        run.log_outputs([out, metrics])
    click.echo(f"{out}: pre-onset AUROC {training.metrics['pre_onset']['auroc']}")


if __name__ == "__main__":
    main()
