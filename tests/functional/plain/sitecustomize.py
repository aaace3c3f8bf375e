"""Servers are as after a plain installation: without pyOpenSSL, which C{Twisted[tls]} brings.

Only the tests of Twisted's own TLS need it; a server that finds it imports it, which is a fifth of
what its start costs: 316 ms of CPU for the master and 270 for a worker, 248 and 223 without.
"""

import sys

sys.modules["OpenSSL"] = None  # type: ignore[assignment]
