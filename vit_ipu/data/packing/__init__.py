"""The command `vit-ipu pack`, which packs an image folder into tar shards."""
