"""The search in plain torch: float32 with a certificate (`search.py`, `float32_scan.py`), float64 for the rows that it
cannot decide (`float64_ties.py`).
"""
