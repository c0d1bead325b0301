"""Which ratio is safe: certified losses of compression, with and without a guard."""
