"""Internal: a workflow's row, its columns, and the SQL that reads and writes it."""
