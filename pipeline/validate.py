"""Check the tables against the plan and against each other."""

from pathlib import Path

import click

from kvguard import stage


@click.command(help=__doc__)
@stage.model_option
@stage.params_option
@stage.one_line_errors
def main(model: str, params_path: Path) -> None:  # noqa: D103
    from kvguard import tracking
    from kvguard.errors import KvguardError
    from kvguard.models.load import vocabulary_size
    from kvguard.store.files import write_json, write_text
    from kvguard.studies.catastrophes import layout
    from kvguard.studies.catastrophes.params import load_params
    from kvguard.studies.catastrophes.validate import Plan, snapkv_windows, validate
    from kvguard.sweep.settings import conditions

    params = load_params(params_path)
    spec = params.spec(model)
    prompts, features = layout.prompts(model), layout.features(model)
    out, metrics = layout.validation_report(model), layout.metrics("validate", model)
    inputs = [prompts, layout.traces(model), features]
    settings = {"validate": params.validation.model_dump(), "model": spec.model_dump()}
    with tracking.run("validate", model=model, params=settings, inputs=inputs) as run:
        plan = Plan(
            conditions=conditions(params.preset),
            max_new_tokens=params.task(model).max_new_tokens,
            vocab_size=vocabulary_size(model, spec),
            snapkv_windows=snapkv_windows(params.compressors),
        )
        report = validate(prompts, layout.generated(model), features, plan, params.validation)
        write_text(out, report.markdown)
        write_json(metrics, report.metrics)
        run.log_metrics(report.metrics)
        run.log_artifact(out)
        run.log_outputs([out, metrics])
        if not report.ok:
            raise KvguardError(f"{model}: the data break a tolerance of params.yaml, validate: read {out}")
    click.echo(f"{out}: {report.metrics['n_traces']} traces agree with their plan")


if __name__ == "__main__":
    main()
