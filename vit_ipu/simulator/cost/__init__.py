"""What a compiled model would need of each IPU: memory, operations, traffic and cycles."""
