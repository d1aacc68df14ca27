"""The command line, and what a run is."""
