"""Internal: the immutable values that go in and out of the library."""
