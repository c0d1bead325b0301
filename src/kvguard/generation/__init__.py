"""Prefill once, decode many: traces and their per-token signals under real kvpress compression."""
