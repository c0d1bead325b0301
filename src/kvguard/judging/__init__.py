"""What a finished trace is found to be: catastrophes, and its task's scores."""
