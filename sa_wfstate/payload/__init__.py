"""Internal: a Pydantic type and its values as JSON text."""
