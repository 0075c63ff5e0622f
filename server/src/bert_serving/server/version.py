"""The version of this distribution, written once."""

__version__ = "2.0.0"
