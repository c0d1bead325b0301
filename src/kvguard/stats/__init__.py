"""Intervals by a bootstrap over prompts; paired tests."""
