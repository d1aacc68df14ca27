"""Quantizers: the door that all share, those with a stored codebook, fixed grids, and composites."""
