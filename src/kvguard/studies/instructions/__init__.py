"""The instruction-following study: does a model still do what it was told once its cache was evicted?"""
