"""The command `vit-ipu pack`: an image folder to tar shards."""
