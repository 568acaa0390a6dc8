"""Images and labels: sources, transforms, and the loader of host steps."""
