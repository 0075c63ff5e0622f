"""Server of bert-serving: a broker, a worker for each device, and their supervisor."""

from .version import __version__

__all__ = ["__version__"]
