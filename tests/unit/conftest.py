"""Settings of the whole unit suite: what hypothesis tries is the same on every machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile(
    "unit", derandomize=True, deadline=None, database=None, max_examples=60, print_blob=False
)
settings.load_profile("unit")
