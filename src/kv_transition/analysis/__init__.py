"""What the scores say along length: bins with intervals, effective length, transition zones, figures."""
