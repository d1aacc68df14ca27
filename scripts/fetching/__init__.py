"""Fetches real photographs and recordings from Debian packages; the parts behind ``scripts/fetch_data.py``."""
