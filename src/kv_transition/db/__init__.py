"""The database of record: one SQLite file per experiment group, from which everything else is made."""
