"""Quantizers made of quantizers."""
