"""The message codes of L{tests.functional.apps}, free of imports: traffic starts sooner so."""

PING, REACTOR, THREAD, AWAIT, PID = range(5)
SLEEP, LATER, BLOCK, COMPUTE = range(10, 14)
RAISE_REACTOR, RAISE_THREAD, TOO_LONG, WRONG_TYPE = range(20, 24)
PUSH, SILENT, CLOSE, COUNT, POINT, WHO = range(30, 36)
NAP, TALLY, TALLY_IN_THREAD, BULK, CHATTER, CHATTER_IN_THREAD = range(40, 46)

ECHOES = (REACTOR, THREAD, AWAIT)
"""The codes under which what was sent comes back, handled in different ways."""

TALLIES = (TALLY, TALLY_IN_THREAD)
"""The codes that count, in C{session.state}, how often the connection has sent them."""

CHATTERS = (CHATTER, CHATTER_IN_THREAD)
"""The codes under which several packets come back, in different ways; so does L{BULK}."""
