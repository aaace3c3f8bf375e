"""The tests of properties: no clock has a part in them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings
from twisted.trial.unittest import SynchronousTestCase

import tests.properties

TESTS = Path(tests.properties.__file__).parent
IMPORT = "import tests.properties"


class ClockTests(SynchronousTestCase):
    def test_no_example_has_a_deadline(self):
        self.assertIsNone(settings().deadline)
        self.assertIn(HealthCheck.too_slow, settings().suppress_health_check)

    def test_all_who_test_properties_say_so(self):
        for file in TESTS.rglob("*.py"):
            source = file.read_text()
            if "from hypothesis import" in source and file.name != "properties.py":
                package = (file.parent / "__init__.py").read_text()
                self.assertTrue(IMPORT in source or IMPORT in package, file)
