"""Internal: the mapped class, and its rows in the unit of work."""
