"""Which models kvguard knows and how they are loaded."""
