"""Files that a run writes and resumes from: its folder, checkpoints, metrics and environment."""
