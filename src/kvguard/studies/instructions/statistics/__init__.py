"""What the results of a run say, in numbers with intervals."""
