"""Internal: commits outside the unit of work, and transactions."""
