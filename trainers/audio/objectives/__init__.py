"""Distances of waveforms."""
