"""Measure, forecast and prevent catastrophic failures of LLMs under KV cache compression."""
