"""Where each stage puts what it makes, and how its small files get there whole."""

from pathlib import Path

DATA, METRICS, PLOTS, MODELS = Path("data"), Path("metrics"), Path("plots"), Path("models")
_MEASURED = {
    "train": "score",
    "evaluate": "score",
    "ablate": "intervals",
    "transfer": "intervals",
    "live-validate": "intervals",
}


def prompts(model: str) -> Path:
    """Return the prompts table of ``sample``."""
    return DATA / "sample" / f"{model}.parquet"


def generated(model: str) -> Path:
    """Return the folder of ``generate``."""
    return DATA / "generate" / model


def traces(model: str) -> Path:
    """Return the judged traces of ``generate``."""
    return generated(model) / "traces.parquet"


def features(model: str) -> Path:
    """Return the features table of ``featurize``."""
    return DATA / "featurize" / model / "features.parquet"


def validation_report(model: str) -> Path:
    """Return the report of ``validate``."""
    return DATA / "validate" / model / "report.md"


def trained(model: str, protocol: str) -> Path:
    """Return the folder of ``train``."""
    return DATA / "train" / f"{model}-{protocol}"


def fit(trained: Path, number: int) -> Path:
    """Return where ``train`` keeps a further fit of the hazard; the first is in the folder itself."""
    return trained / "fits" / str(number)


def evaluated(model: str, protocol: str) -> Path:
    """Return the folder of ``evaluate``."""
    return DATA / "evaluate" / f"{model}-{protocol}"


def scored(model: str, protocol: str) -> Path:
    """Return the folder of ``score``."""
    return DATA / "score" / f"{model}-{protocol}"


def facts(stage: str, model: str, protocol: str) -> Path:
    """Return what ``train`` or ``evaluate`` itself says, without intervals, as a results table."""
    return DATA / stage / f"{model}-{protocol}" / "facts.parquet"


def exported(model: str) -> Path:
    """Return the folder of ``export``, which a live guard is loaded from."""
    return MODELS / model


def compared(stage: str, model: str) -> Path:
    """Return the folder of ``ablate`` or ``transfer``: variants."""
    return DATA / stage / model


def live(model: str) -> Path:
    """Return the folder of ``live-validate``."""
    return DATA / "live-validate" / model


def made_by(stage: str) -> str:
    """Return the stage that makes the results of ``stage``: intervals are a stage apart from fits."""
    return _MEASURED.get(stage, stage)


def results(stage: str, model: str, protocol: str | None = None) -> Path:
    """Return the results table of a stage."""
    if protocol is not None:
        return scored(model, protocol) / f"{stage}.parquet"
    return DATA / made_by(stage) / model / (f"{stage}.parquet" if stage in _MEASURED else "results.parquet")


def metrics(stage: str, model: str, protocol: str | None = None) -> Path:
    """Return the metrics file of a stage."""
    return METRICS / stage / f"{_joined(model, protocol)}.json"


def plots(stage: str, model: str, protocol: str | None = None) -> Path:
    """Return the folder of a stage's plots."""
    return PLOTS / stage / _joined(model, protocol)


def _joined(model: str, protocol: str | None) -> str:
    return f"{model}-{protocol}" if protocol else model
