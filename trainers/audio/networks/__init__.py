"""Frozen networks of sound, and their features on the frames of a codec."""
