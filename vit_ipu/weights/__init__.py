"""Weights of any known naming: fetched, read, translated, fitted to a model, and exported."""
