"""Distances of images."""
