"""Fetches real photographs from Debian packages; the parts behind ``scripts/fetch_data.py``."""
