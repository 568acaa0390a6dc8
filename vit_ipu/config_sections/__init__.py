"""The sections of a config, each with its keys and the checks of their values."""
