"""The guard at run time: features, hazard model, watch, controller, actions; the library's ``Guard``."""

# As the engine's version, of what a guarded generation does.
VERSION = 2
