"""The controller, simulated offline: thresholds searched, operating points chosen."""
