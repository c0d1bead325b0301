"""The report of an experiment group, made from its database alone."""
