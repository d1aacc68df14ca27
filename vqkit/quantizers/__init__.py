"""Quantizers: their common base, those with a stored codebook, fixed grids, and composites."""
