"""The features of a token, in the order in which the hazard model reads them."""

from kvguard.engine.columns import SIGNALS

ROLLED = ("entropy", "top1_prob", "h_alts", "delta_h")

# The entropy of the text so far, against its own beginning: protocol v3's.
DRIFT = ("entropy_mean", "entropy_mean_first_16", "entropy_drift_32", "entropy_max")

FEATURES_V2 = (
    *SIGNALS[:-1],
    "delta_h",
    "delta_h_valid",
    "rep_count",
    "is_thinking_token",
    *(f"{name}_{statistic}_8" for name in ROLLED for statistic in ("mean", "std")),
    "rep_count_sum_8",
    "token_position",
    "compression_ratio",
)

FEATURES = (*FEATURES_V2, *DRIFT)
