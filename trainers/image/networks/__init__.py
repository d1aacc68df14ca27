"""Frozen networks of images: where weights come from, and the features that distances and measures are taken of."""
