"""Measure on test prompts, with intervals, what train forecasts and what evaluate's controller would do."""

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
    from kvguard.judging.judge import read_judged
    from kvguard.store.files import write_json
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.score.stage import FORECASTS, score

    params = load_params(params_path)
    horizon = params.horizon
    source, out = layout.traces(model), layout.scored(model, protocol)
    settings = {"seed": params.seed, "n_resamples": params.n_resamples, "horizon": horizon}
    inputs = [source, layout.trained(model, protocol), layout.evaluated(model, protocol)]
    with tracking.run("score", model=model, protocol=protocol, params=settings, inputs=inputs) as run:
        traces = read_judged(source)
        found = score(model, protocol, traces, horizon, params.n_resamples, params.seed)
        found.write(out)
        forecasts, controllers = found.forecasts.metrics(*FORECASTS), found.controllers_headline
        for of, numbers in (("train", forecasts), ("evaluate", controllers)):
            write_json(layout.metrics(of, model, protocol), numbers)
            run.log_metrics(numbers)
            table = layout.results(of, model, protocol)
            run.log_table(f"results-{of}-{model}-{protocol}", table, context="output")
        run.log_outputs([out, *(layout.metrics(of, model, protocol) for of in ("train", "evaluate"))])
    auroc = forecasts["predictor"]["pre_onset"]["auroc"]["value"]
    overall = controllers["controller-balanced"]["overall"]
    before, after = (overall[f"cbr_{how}"]["value"] for how in ("uncontrolled", "controlled"))
    click.echo(f"{out}: pre-onset AUROC {auroc:.3f}; CBR {before:.3f} -> {after:.3f} (balanced)")


if __name__ == "__main__":
    main()
