"""Internal: the reducer service: queue per key, attempts, retry."""
