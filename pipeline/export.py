"""Gather what a live guard needs, hazard model and operating points, in one small folder for git."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@stage.params_option
@stage.one_line_errors
def main(model: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.guard.bundle import Card
    from kvguard.models.identity import weights_digest
    from kvguard.models.load import load_model
    from kvguard.store.tables import read_table
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.export import export
    from kvguard.studies.catastrophes.measure.outcomes import conditions_of
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.protocols import HEADLINE

    params = load_params(params_path)
    spec, source = params.spec(model), layout.traces(model)
    trained, evaluated = layout.trained(model, HEADLINE), layout.evaluated(model, HEADLINE)
    out = layout.exported(model)
    traces = read_table("traces", source, ["compressor", "ratio"])
    card = Card(
        model=model,
        source=spec.source,
        weights=weights_digest(load_model(model, spec, "cpu").model),
        protocol=HEADLINE,
        horizon=params.horizon,
        thinking_words=params.featurize.thinking_words,
        max_new_tokens=params.task(model).max_new_tokens,
        conditions=tuple(str(condition) for condition in conditions_of(traces)),
    )
    points = evaluated / "operating_points.json"
    inputs = [source, trained, points]
    with tracking.run(
        "export", model=model, protocol=HEADLINE, params=card.model_dump(), inputs=inputs
    ) as run:
        export(trained, evaluated, card, out)
        size = sum(path.stat().st_size for path in out.iterdir())
        run.log_metrics({"bytes": size})
        run.log_artifact(out, "guard")
        run.log_outputs([out])
    click.echo(f"{out}: a guard of {size / 1e6:.2f} MB; load it with Guard.load({str(out)!r})")


if __name__ == "__main__":
    main()
