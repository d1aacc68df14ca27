"""The version of the library, in the one place that the wheel and the saved files read it from."""

__version__ = "0.2.0"
