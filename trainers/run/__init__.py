"""The command line and the run folder."""
