"""Pixels: decoding, resizing, crops and augmentation."""
