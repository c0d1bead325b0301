"""Labels, splits, training and metrics of the hazard model."""
