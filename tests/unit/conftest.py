"""How Hypothesis runs in the unit tests: short, and without a deadline, because the machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=50)
settings.load_profile("unit")
