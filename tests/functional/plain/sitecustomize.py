"""Servers are as after a plain installation: without pyOpenSSL, which C{Twisted[tls]} brings.

Only the tests of Twisted's own TLS need it; a server that finds it imports it, which takes a
fourth of its start.
"""

import sys

sys.modules["OpenSSL"] = None  # type: ignore[assignment]
