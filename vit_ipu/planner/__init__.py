"""What a model costs, before anything is compiled."""
