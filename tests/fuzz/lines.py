"""Targets that read what programs beside the clients send: lines of control, PROXY headers."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

from twisted.internet.task import Clock

from ccserver.core.proxy import V1_LIMIT, V2_FIXED, V2_LIMIT, Header, parse
from ccserver.errors import BadProxyHeader
from ccserver.process.operations import COMMANDS
from ccserver.process.requests import LINE_LIMIT, ControlConnection, Credentials
from tests.fuzz.choices import Choices, pieces
from tests.process.operators import FakeOperations


class Wire:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written behind the close"
        self.written.append(data)

    def loseConnection(self) -> None:
        self.closed = True

    abortConnection = loseConnection

    def registerProducer(self, producer: object, streaming: bool) -> None:
        assert streaming

    def unregisterProducer(self) -> None:
        """Nothing to do."""


def control(data: bytes) -> None:
    """L{ControlConnection}: each line has one answer, in order; what is asked for is a command."""
    choices = Choices(data)
    options = choices.byte()
    cuts = choices.take(options & 3)
    received = choices.rest()
    if options & 4:
        received = received.replace(b"\n", b"") * (1 + (options >> 4) * 40)
        received = received[: 3 * LINE_LIMIT] + b"\n{}\n"
    operations, wire = FakeOperations(), Wire()
    connection: Any = ControlConnection(operations, Clock(), Credentials(1, 0, 0), _nothing)
    connection.makeConnection(wire)
    for piece in pieces(received, cuts):
        connection.dataReceived(piece)
        assert len(connection._received) <= LINE_LIMIT
        while operations.running:
            operations.progress("on its way")
            operations.running.pop(0).callback({})
    connection.readConnectionLost()
    assert wire.closed
    answers = [json.loads(line) for line in b"".join(wire.written).splitlines()]
    final = [answer for answer in answers if {"error", "result"} & set(answer)]
    assert len(answers) - len(final) == sum("accepted" in a or "progress" in a for a in answers)
    lines = [line for line in received.split(b"\n")[:-1] if line.strip()]
    refused = bool(final) and "at once" in final[-1].get("error", "")
    assert len(final) - refused <= len(lines)
    assert refused or len(final) == len(lines), (final, lines)
    assert len(operations.asked) <= len(lines)
    assert {name for name, *_ in operations.asked} <= set(COMMANDS)
    connection.connectionLost()


def _nothing(connection: object) -> None:
    """Nobody needs to know that it is gone."""


def proxy(data: bytes) -> None:
    """L{parse}: what it says of a piece holds when more has come, and it does not wait for ever."""
    limit = V2_FIXED + V2_LIMIT
    before: Header | str | None = None
    for size in range(min(len(data), limit) + 1):
        now = _parsed(data[:size])
        assert before is None or now == before, (size, before, now)
        if isinstance(now, Header):
            assert now.size <= size, now
            if before is None:
                assert now.size == size, "behind the header nothing is needed"
            if now.client is not None:
                address, port = now.client
                assert str(ip_address(address)) == address
                assert 0 <= port <= 65535
        before = now
    if before is None and data:
        assert len(data) < (V1_LIMIT if data[:1] == b"P" else limit), "it waits for ever"


def _parsed(data: bytes) -> Header | str | None:
    try:
        return parse(data)
    except BadProxyHeader:
        return "refused"
