"""The controller and its offline simulation."""
