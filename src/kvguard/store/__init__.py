"""The stored tables, their schemas, parts and results."""
