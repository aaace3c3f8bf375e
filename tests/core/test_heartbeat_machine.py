"""Heartbeats of connections that come, speak, move and go, over clocks that tick late."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.limits import Heartbeat, HeartbeatWheel
from tests.core.machines import run_machine

WHEELS = 2


@dataclass(eq=False)
class Client:
    """A connection, and the worker that it is in."""

    started: float
    heard: float
    place: int


class HeartbeatMachine(RuleBasedStateMachine):
    """Two workers' wheels, each ticking about once a second."""

    @initialize(kick=st.booleans(), start=st.sampled_from([0.0, 1000.25, 1000.999]))
    def begin(self, kick: bool, start: float) -> None:
        self.now = start
        self.heartbeat = Heartbeat(5, kick)
        self.wheels: list[HeartbeatWheel[Client]] = [
            HeartbeatWheel(self.heartbeat, self.now) for _ in range(WHEELS)
        ]
        self.looked = [int(self.now)] * WHEELS  # the first second that was not looked at
        self.clients: list[Client] = []
        self.closed = 0

    @rule(place=st.integers(0, WHEELS - 1))
    def connect(self, place: int) -> None:
        client = Client(self.now, self.now, place)
        self.clients.append(client)
        self.wheels[place].add(client, client.started)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def speak(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.clients)).heard = self.now

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self._remove(data.draw(st.sampled_from(self.clients)))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.wheels[client.place].remove(client, client.started)
        client.place = (client.place + 1) % WHEELS
        self.wheels[client.place].add(client, client.started)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(place=st.integers(0, WHEELS - 1))
    def tick(self, place: int) -> None:
        """One worker looks whose check has come."""
        due = self.wheels[place].due(self.now)
        assert len(due) == len(set(map(id, due))), "nobody is looked at twice"
        expected = [client for client in self.clients if self._is_due(client, place)]
        assert set(map(id, due)) == set(map(id, expected))
        self.looked[place] = int(self.now)
        for client in due:
            if self.heartbeat.expired(client.heard, self.now):
                self._remove(client)
                self.closed += 1

    @rule(seconds=st.sampled_from([1.0, 1.1, 7.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        """Both workers look, a second after the other or, if they were stopped, much later."""
        self.now += seconds
        for place in range(WHEELS):
            self.tick(place)

    @rule(seconds=st.integers(5, 45))
    def stay_silent(self, seconds: int) -> None:
        """Nobody says anything, and the workers look as they should."""
        began = self.now
        for _ in range(seconds):
            self.pass_time(1.0)
        silence = 0.0 if self.heartbeat.kick else self.heartbeat.silence
        limit = silence + self.heartbeat.interval + 2
        for client in self.clients:
            assert self.now - max(began, client.heard) <= limit, "silent, and not closed"

    def _is_due(self, client: Client, place: int) -> bool:
        """Whether a whole interval has ended that this worker has not looked at."""
        first, interval = int(client.started), self.heartbeat.interval
        return client.place == place and any(
            second > first and not (second - first) % interval
            for second in range(self.looked[place], int(self.now))
        )

    def _remove(self, client: Client) -> None:
        self.wheels[client.place].remove(client, client.started)
        self.clients.remove(client)


class HeartbeatTests(SynchronousTestCase):
    def test_every_check_comes_once_and_no_silence_lasts(self):
        run_machine(HeartbeatMachine)
