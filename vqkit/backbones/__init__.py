"""Encoder and decoder pairs; each module imports torch only."""
