"""What holds for all suites."""

from __future__ import annotations

import hypothesis

# An example that a busy machine makes slow is no failure; pytest's own timeout finds what hangs.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")
