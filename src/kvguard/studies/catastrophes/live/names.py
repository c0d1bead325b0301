"""What regimes and policies are called in the live table."""

UNCOMPRESSED, STATIC, ROLLBACK = "uncompressed", "static", "rollback"
PREFILL, DECODING, SWITCH = "prefill", "decoding", "switch"
STAGE = "live-validate"
