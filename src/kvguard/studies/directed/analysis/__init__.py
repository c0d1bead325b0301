"""What the values of cells say: effects, gradients, structure, interactions, pooled over data sets."""
