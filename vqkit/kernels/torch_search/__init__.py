"""The search in plain torch: `search.py` in float32 with a certificate, `float64_ties.py` for the other rows."""
