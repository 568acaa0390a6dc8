"""Cost of a compiled model on each IPU: memory, operations, traffic and cycles."""
