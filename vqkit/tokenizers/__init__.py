"""Encoder, quantizer and decoder as one module, for images, sound and anything else."""
