"""Where, along context length, does a compressed KV cache become unreliable?

A harness that speaks HTTP to OpenAI-compatible endpoints. It imports neither torch nor kvguard's engine.
"""
