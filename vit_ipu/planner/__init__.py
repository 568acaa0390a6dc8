"""Planner: predicts the memory and the time of a ViT on a pipeline of IPUs, and searches for a better split.

Nothing here imports torch, and nothing here was measured on an IPU by this project: docs/planner.md compares the
predictions with published figures.
"""
