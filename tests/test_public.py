"""What is public: a name that comes or goes is a change for users."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

import ccserver
import ccserver.client
import ccserver.config


class PublicNamesTests(SynchronousTestCase):
    def test_of_ccserver(self):
        self.assertEqual(
            ccserver.__all__,
            [
                "App",
                "AppError",
                "BadBody",
                "CcserverError",
                "CloseReason",
                "Config",
                "ConfigError",
                "Message",
                "PacketTooLong",
                "ProtocolError",
                "SendTimeout",
                "Session",
                "SessionClosed",
                "Worker",
                "field",
            ],
        )

    def test_every_public_name_is_there(self):
        for module in (ccserver, ccserver.client, ccserver.config):
            for name in module.__all__:
                self.assertTrue(hasattr(module, name), f"{module.__name__}.{name}")
