"""What ``train`` and ``evaluate`` chose, measured on test prompts, with intervals; nothing is fitted here."""
