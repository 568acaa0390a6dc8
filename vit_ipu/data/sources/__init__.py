"""Sources of images with labels: folders, ImageNet, tar shards, Hugging Face data sets, small sets."""
