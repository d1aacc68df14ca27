"""Training code for vqkit tokenizers: run from a checkout with `python -m trainers`; not part of the wheel."""
