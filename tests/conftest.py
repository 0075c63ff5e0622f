"""Settings of all tests: what hypothesis tries is the same on every machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile(
    "tests", derandomize=True, deadline=None, database=None, max_examples=60, print_blob=False
)
settings.load_profile("tests")
