"""Directed KV caches: is the cache of a document better for having been read after a prefix?"""
