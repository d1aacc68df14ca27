"""Discriminators of images."""
