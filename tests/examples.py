"""How many examples Hypothesis tries; without deadline, because a shared machine is slow at times for no fault."""

from __future__ import annotations

from hypothesis import settings

few = settings(deadline=None, max_examples=30)
many = settings(deadline=None, max_examples=120)
