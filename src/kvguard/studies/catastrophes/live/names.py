"""What regimes and policies are called in the live table."""

from typing import Literal, get_args

from kvguard.studies.catastrophes.protocols import BEFORE

UNCOMPRESSED, STATIC, ROLLBACK = "uncompressed", "static", "rollback"
ROLLBACK_BEFORE = f"{ROLLBACK}_{BEFORE}"  # by the hazard of the protocol before
STOP_AT_ANSWER = "stop_at_answer"  # a stop string after the first answer: no model
PREFILL, DECODING, SWITCH = "prefill", "decoding", "switch"
STAGE = "live-validate"

PlainTrigger = Literal["entropy", "clock", "loop"]
# Rollbacks that a trigger without a hazard asks for.
BY_TRIGGER: tuple[PlainTrigger, ...] = get_args(PlainTrigger)
