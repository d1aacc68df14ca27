"""Quantizers without a stored codebook: the codes are a fixed grid."""
