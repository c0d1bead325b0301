"""Turn the signals of every token into features."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@stage.params_option
@stage.one_line_errors
def main(model: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.guard.features import thinking_mask
    from kvguard.models.load import load_tokenizer
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.featurize import featurize
    from kvguard.studies.catastrophes.params import load_params

    params = load_params(params_path)
    spec = params.spec(model)
    source, out = layout.traces(model), layout.features(model)
    settings = {"featurize": params.featurize.model_dump(), "model": spec.model_dump()}
    with tracking.run("featurize", model=model, params=settings, inputs=[source]) as run:
        run.log_table(f"traces-{model}", source)
        mask = thinking_mask(load_tokenizer(model, spec), params.featurize.thinking_words)
        budget = params.task(model).max_new_tokens
        metrics = featurize(layout.generated(model), budget, mask, out)
        run.log_metrics(metrics)
        run.log_table(f"features-{model}", out, context="output")
        run.log_outputs([out])
    click.echo(f"{out}: {metrics['n_tokens']} tokens of {metrics['n_traces']} traces")


if __name__ == "__main__":
    main()
