"""Internal: commit actions through a pure reducer, one queue per key, with retries."""
