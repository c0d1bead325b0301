"""From a booster's margin to a probability; once fitted, a calibration needs NumPy alone.

Either keeps the order of the margins, so it changes what a threshold means and not what it can tell apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]

Margins = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Isotonic:
    """A rising curve through the centres of isotonic regression's blocks, straight in between.

    Isotonic regression alone is flat on each block, so tokens that the booster ranks become ties. Its
    centred form (Oron and Flournoy 2017) puts each block's value at the block's mean margin.

    Attributes
    ----------
    margin, probability
        The centres. [B]
    """

    method: ClassVar[str] = "isotonic"
    margin: tuple[float, ...]
    probability: tuple[float, ...]

    @classmethod
    def fit(cls, margin: Margins, target: Bools) -> "Isotonic":
        """Fit it to tokens of both classes. [N], [N]"""
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit_transform(margin, target)
        fitted = np.clip(fitted, 0, 1)  # float32 rounding may carry a mean of ones past 1
        values, block = np.unique(fitted, return_inverse=True)
        centres = np.bincount(block, weights=margin) / np.bincount(block)
        return cls(tuple(centres.tolist()), tuple(values.tolist()))

    def __call__(self, margin: Margins) -> NDArray[np.float32]:
        """Return the probability of each token. [N]"""
        return np.interp(margin, *self._curve).astype(np.float32)

    @cached_property
    def _curve(self) -> NDArray[np.float64]:
        return np.array([self.margin, self.probability])  # [2, B]


@dataclass(frozen=True)
class Platt:
    """A logistic curve over the margin (Platt 1999)."""

    method: ClassVar[str] = "platt"
    slope: float
    intercept: float

    @classmethod
    def fit(cls, margin: Margins, target: Bools) -> "Platt":
        """Fit it to tokens of both classes. [N], [N]"""
        from sklearn.linear_model import LogisticRegression

        fitted = LogisticRegression(C=np.inf).fit(margin[:, None].astype(np.float64), target)
        return cls(float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))

    def __call__(self, margin: Margins) -> NDArray[np.float32]:
        """Return the probability of each token. [N]"""
        logit = self.slope * margin + self.intercept
        return (0.5 + 0.5 * np.tanh(0.5 * logit)).astype(np.float32)  # the logistic, without overflow


Calibration = Isotonic | Platt
_METHODS: dict[str, type[Isotonic] | type[Platt]] = {kind.method: kind for kind in (Isotonic, Platt)}


def fit_calibration(method: Literal["isotonic", "platt"], margin: Margins, target: Bools) -> Calibration:
    """Fit the calibration called ``method`` to tokens of both classes.

    Parameters
    ----------
    margin
        The booster's log-odds. [N]
    target
        What came true. [N]
    """
    return _METHODS[method].fit(margin, target)


def as_card(calibration: Calibration) -> dict[str, Any]:
    """Return it as JSON holds it."""
    return {"method": calibration.method, **asdict(calibration)}


def from_card(card: Mapping[str, Any]) -> Calibration:
    """Return the calibration that :func:`as_card` described."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in card.items()}
    kind: Callable[..., Calibration] = _METHODS[str(values.pop("method"))]
    return kind(**values)
