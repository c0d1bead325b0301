"""Asking: every request once, with patience, and each response committed as it comes."""
