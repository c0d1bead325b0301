"""What is asked: loaded, brought into one form, counted in tokens, put into bins, chosen."""
