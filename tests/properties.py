"""How properties are tested: without a look at the clock, which tells of who else is at work.

By default hypothesis fails an example that takes 200 ms, and inputs that are made slowly. Whoever
tests properties imports this.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("ccserver", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ccserver")
