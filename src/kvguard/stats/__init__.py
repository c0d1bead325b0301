"""Intervals by a bootstrap over prompts; paired tests, sizes of paired effects, trends."""
