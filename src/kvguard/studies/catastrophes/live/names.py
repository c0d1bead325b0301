"""What regimes and policies are called in the live table."""

from typing import Literal

UNCOMPRESSED, STATIC, ROLLBACK = "uncompressed", "static", "rollback"
PREFILL, DECODING, SWITCH = "prefill", "decoding", "switch"
PROTOCOL: Literal["v2"] = "v2"  # whose hazard model and operating point
STAGE = "live-validate"
