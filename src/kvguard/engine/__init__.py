"""Tokens, caches, presses and the one decode loop; knows nothing of tasks, tables and reports."""

# Part of every stored part's fingerprint. Raise it when a change alters the tokens or signals that the engine
# makes; tests/golden fails when they change and this does not.
VERSION = 2
