"""Train the hazard model on the train part, choose on the tune part, measure on the test part."""

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
    import pandas as pd

    from kvguard import tracking
    from kvguard.store.files import write_json
    from kvguard.store.tables import read_table
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.chapter.figures import model_title, training_figures
    from kvguard.studies.catastrophes.export import save_hazard
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.train.fit import train
    from kvguard.studies.catastrophes.train.protocols import PROTOCOLS
    from kvguard.studies.catastrophes.train.splits import write_split

    params = load_params(params_path)
    spec = params.spec(model)
    source, features = layout.traces(model), layout.features(model)
    out, metrics = layout.trained(model, protocol), layout.metrics("train", model, protocol)
    plots = layout.plots("train", model, protocol)
    settings = params.train.model_dump() | {"seed": params.seed, "horizon": params.featurize.horizon}
    columns = ["trace_id", "prompt_id", "compressor", "catastrophes", "onset"]
    with tracking.run(
        "train", model=model, protocol=protocol, params=settings, inputs=[source, features]
    ) as run:
        run.log_table(f"traces-{model}", source)
        run.log_table(f"features-{model}", features)
        training = train(
            features,
            read_table("traces", source, columns),
            params.train,
            params.seed,
            protocol,
            model=model,
            horizon=params.featurize.horizon,
            n_resamples=params.n_resamples,
        )
        found = training.results.metrics("predictor", "horizons", "cross_validation", "model")
        save_hazard(training.model, out)
        split = write_split(training.split, PROTOCOLS[protocol], out)
        training.results.write(layout.results("train", model, protocol))
        write_json(metrics, found)
        title, early = model_title(model, spec.is_reference), training.test.pre_onset
        hazard, label = training.test_hazard[early], training.test.label[early]
        training_figures(training.results.frame, hazard, label, title, plots)
        run.log_metrics(found)
        run.log_table(f"split-{model}-{protocol}", split, context="output")
        run.log_artifact(out, "hazard")
        run.log_artifact(plots, "plots")
        example = pd.DataFrame(training.test.features[:5], columns=list(training.model.features))
        run.log_model(training.model.booster, example, f"hazard-{model}-{protocol}")
        run.log_outputs([out, metrics])
    auroc = found["predictor"]["pre_onset"]["auroc"]["value"]
    click.echo(f"{out}: pre-onset AUROC {auroc:.3f}")


if __name__ == "__main__":
    main()
