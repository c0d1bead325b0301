"""A scorer whose values are known: what statistics and the report are held against."""

import dataclasses

import numpy as np
import pandas as pd

from kvguard.studies.directed.params import AnalysisParams, Protocol

ORDER = ("noise", "far", "near", "oracle")
CONDITIONS = ("bare", *ORDER, "flat")
PARAMS = AnalysisParams(n_resamples=300, n_permutations=199)
PROTOCOL = Protocol(
    track="synthetic",
    title="t",
    about="a",
    conditions=CONDITIONS,
    reference="noise",
    oracle="oracle",
    gradient=ORDER,
)


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """A scorer whose NLLs are known: what each condition adds to an example's own, and noise."""

    added: dict[str, float]
    noise: float = 0.1
    seed: int = 0

    def nll(self, n: int, conditions=CONDITIONS) -> pd.DataFrame:
        rng = np.random.default_rng(self.seed)
        own = rng.gamma(3.0, 0.5, size=(n, 1))
        found = own + self.noise * rng.normal(size=(n, len(conditions)))
        return pd.DataFrame(found + [self.added.get(name, 0.0) for name in conditions], columns=conditions)


def table(wide: pd.DataFrame, dataset: str = "made", setting: str = "none", documents=None) -> pd.DataFrame:
    ids = [f"e{row}" for row in range(len(wide))]
    documents = ids if documents is None else documents
    return pd.DataFrame(
        {
            "example": np.repeat(ids, wide.shape[1]),
            "document": np.repeat(documents, wide.shape[1]),
            "dataset": dataset,
            "condition": list(wide.columns) * len(wide),
            "setting": setting,
            "metric": "nll",
            "value": wide.to_numpy().ravel(),
        }
    )
