"""Encoder and decoder pairs. What each says of itself is in `protocol.py`; each module imports torch only."""
