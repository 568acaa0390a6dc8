"""Data: image sources, decoding and augmentation, packing into shards, and loading of host steps."""
