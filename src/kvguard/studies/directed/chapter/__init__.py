"""The study's chapter of the report: figures, tables, example pages."""
