"""Configurations and weights as files."""
