"""Train the hazard model on the train part, choose on the tune part, forecast the test part."""

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
    import pandas as pd

    from kvguard import tracking
    from kvguard.store.tables import read_table
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.export import save_hazard
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.protocols import PROTOCOLS
    from kvguard.studies.catastrophes.train.fit import train
    from kvguard.studies.catastrophes.train.hazards import write_hazards
    from kvguard.studies.catastrophes.train.splits import write_split

    params = load_params(params_path)
    source, features = layout.traces(model), layout.features(model)
    out = layout.trained(model, protocol)
    settings = params.train.model_dump() | {"seed": params.seed}
    columns = ["trace_id", "prompt_id", "compressor", "catastrophes"]
    columns += ["onset", "onset_by", "proxy_onset", "proxy_onset_by"]
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
        )
        found = training.facts.metrics("model")
        save_hazard(training.model, out)
        for number, repeat in enumerate(training.repeats, start=2):
            save_hazard(repeat, layout.fit(out, number))
        split = write_split(training.split, PROTOCOLS[protocol], out)
        training.facts.write(layout.facts("train", model, protocol))
        write_hazards(training.hazards, out)
        run.log_metrics(found)
        run.log_table(f"split-{model}-{protocol}", split, context="output")
        run.log_artifact(out, "hazard")
        example = pd.DataFrame(training.test.features[:5], columns=list(training.model.features))
        run.log_model(training.model.booster, example, f"hazard-{model}-{protocol}")
        run.log_outputs([out])
    facts = found["model"]["hazard"]
    n_trees, n_tokens = (int(facts[name]["value"]) for name in ("n_trees", "n_train_tokens"))
    click.echo(f"{out}: {n_trees} trees from {n_tokens} tokens; {len(training.hazards)} forecasts")


if __name__ == "__main__":
    main()
