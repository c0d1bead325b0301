"""The study's chapter of the report: tables, figures, findings."""
