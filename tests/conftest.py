"""Lets trial's asynchronous test cases run under pytest-twisted, on the one reactor it keeps; has
what is logged let go, as trial does; and has several processes that share the tests begin with
those that take long.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import globalLogBeginner

from tests import order


def pytest_configure(config: pytest.Config) -> None:
    # until logging begins, the last 200 events are kept, and with them whole connections, whose
    # descriptors would be closed in the midst of another test
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    if not config.pluginmanager.hasplugin("twisted"):
        return  # trial's own way of running the reactor works

    import pytest_twisted
    from twisted.internet import defer, reactor
    from twisted.trial import _asynctest

    def wait(self: Any, result: defer.Deferred[Any], running: object = None) -> None:
        # fired from a timed call: trial's janitor calls reactor.iterate(), and a switch of
        # greenlets out of a call from a thread would run that call twice
        done: defer.Deferred[None] = defer.Deferred()
        result.addBoth(lambda _: reactor.callLater(0, done.callback, None))
        pytest_twisted.blockon(done)

    _asynctest.TestCase._wait = wait


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # of pytest-xdist
        items.sort(key=lambda item: order.place(item.nodeid))
