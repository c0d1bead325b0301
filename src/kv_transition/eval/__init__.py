"""What an answer is worth, and how it failed."""
