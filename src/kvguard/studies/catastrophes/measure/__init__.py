"""What compression does to a model: outcomes, paired comparisons, signals."""
