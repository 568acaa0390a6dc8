"""Images: where they come from, how they become pixels, and how these become host steps."""
