"""A guard's policy: a certificate that every call is held to, and what tells when its promise runs out."""

from __future__ import annotations

from collections.abc import Iterable

from kvguard.engine.sampling import greedy
from kvguard.guard.arguments import Options
from kvguard.guard.certificate import Certificate, Certified, GuardOf, Use
from kvguard.guard.drift import Drift, warn_of_drift
from kvguard.models.identity import weights_digest
from kvguard.models.load import LoadedModel


class Policy:
    """What one guard may be used for.

    Parameters
    ----------
    certificate
        What covers a call.
    guard
        What it calls the guard.

    Attributes
    ----------
    drifts
        Of each certified setting that was used, whether its texts still look like the calibration's; by the
        setting's name.
    """

    def __init__(self, certificate: Certificate, guard: GuardOf | None) -> None:
        self.certificate, self._guard = certificate, guard
        self.drifts: dict[str, Drift] = {}

    def covering(self, options: Options, loaded: LoadedModel) -> Certified | None:
        """Return the certified setting that covers a call, None where nothing is compressed.

        Raises
        ------
        KvguardError
            None does.
        """
        return self.certificate.check(
            Use(
                weights=weights_digest(loaded.model),
                press=options.press,
                action=options.action,
                max_new_tokens=options.max_new_tokens,
                guard=self._guard,
                interval=options.interval,
                greedy=options.sampler is greedy,
            )
        )

    def look(self, covered: Certified | None, scores: Iterable[float]) -> None:
        """Take the scores of texts of a certified setting, in the order in which they were asked for."""
        if covered is None or not covered.scores:
            return
        drift = self.drifts.setdefault(str(covered), Drift(covered.scores))
        for value in scores:
            if drift.observe(value):
                warn_of_drift(drift, str(covered))
