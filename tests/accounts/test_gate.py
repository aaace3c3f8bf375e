"""Gate: refused logins cost no hash, look alike whatever they hold, and are told with restraint."""

import argon2
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from ccserver.accounts import app
from ccserver.accounts.gate import Gate
from ccserver.accounts.store import Store, Unavailable
from ccserver.config import AccountsSettings
from ccserver.core.limits import SessionLimits
from ccserver.core.session import Session
from tests.accounts import support
from tests.accounts.test_handlers import UNAVAILABLE, ZEROS, logged_in, login, register

SMALL = "\n".join(
    [
        *("WrongLogins = 3", "WrongLoginDelay = 30", "AddressWrongLogins = 6"),
        *("AddressWrongLoginDelay = 2", "NameWrongLogins = 50", "NameWrongLoginDelay = 10"),
        "HashTimeCost = 1",
    ]
)


class FakeClock:
    """A clock that stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class RefusalTests(SynchronousTestCase):
    """Of the whole application."""

    def setUp(self) -> None:
        self.folder = support.folder(self)
        support.open_accounts(self, self.folder, cost=SMALL)
        self.clock = FakeClock()
        app.state["gate"] = Gate(
            support.worker(self.folder, cost=SMALL).config.accounts, self.clock
        )
        register(b"bob", b"secret")

    def replies(self, name: bytes, password: bytes, count: int, peer: str) -> list[bytes]:
        """Of logins on a connection each."""
        return [login(name, password, support.session(peer)) for _ in range(count)]

    def test_after_too_many_wrong_ones_the_next_is_told_to_try_later(self):
        replies = self.replies(b"bob", b"wrong", 5, "192.0.2.1:1")
        self.assertEqual(replies, [ZEROS] * 3 + [UNAVAILABLE] * 2)

    def test_a_refusal_tells_neither_the_right_password_nor_the_known_name(self):
        for name in (b"bob", b"nobody", b"\xff"):
            self.replies(name, b"wrong", 3, f"192.0.2.{len(name)}:1")
            replies = self.replies(name, b"secret", 3, f"192.0.2.{len(name)}:1")
            self.assertEqual(replies, [UNAVAILABLE] * 3)

    def test_a_refusal_costs_neither_a_hash_nor_a_look_into_the_database(self):
        self.replies(b"bob", b"wrong", 3, "192.0.2.1:1")

        def fail(*arguments: object) -> None:
            raise AssertionError("it was asked")

        self.patch(argon2.PasswordHasher, "verify", fail)
        self.patch(Store, "find", fail)
        self.assertEqual(login(b"bob", b"secret", support.session("192.0.2.1:1")), UNAVAILABLE)

    def test_the_owner_gets_in_after_the_delay_and_from_elsewhere_at_once(self):
        self.replies(b"bob", b"wrong", 10, "192.0.2.1:1")
        there = support.session("198.51.100.7:1")
        self.assertEqual(login(b"bob", b"secret", there), logged_in(b"bob"))
        self.clock.now += 30.0
        here = support.session("192.0.2.1:1")
        self.assertEqual(login(b"bob", b"secret", here), logged_in(b"bob"))

    def test_right_logins_are_never_too_many(self):
        replies = self.replies(b"bob", b"secret", 50, "192.0.2.1:1")
        self.assertEqual(replies, [logged_in(b"bob")] * 50)

    def test_an_earlier_success_stays_in_force(self):
        session = support.session()
        login(b"bob", b"secret", session)
        for _ in range(5):
            login(b"bob", b"wrong", session)
        self.assertEqual(session.state["user"], "bob")

    def test_register_is_not_concerned(self):
        self.replies(b"bob", b"wrong", 10, "127.0.0.1:5000")
        self.assertEqual(register(b"eve", b"secret")[:4], bytes(4))

    def test_failures_of_the_database_are_not_the_clients(self):
        def away(store: Store, name: str) -> None:
            raise Unavailable

        patch = self.patch(Store, "find", away)
        replies = self.replies(b"bob", b"secret", 10, "192.0.2.1:1")
        self.assertEqual(replies, [UNAVAILABLE] * 10)
        patch.restore()
        session = support.session("192.0.2.1:1")
        self.assertEqual(login(b"bob", b"secret", session), logged_in(b"bob"))


class GateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.gate = self.new_gate()

    def new_gate(self) -> Gate:
        settings = AccountsSettings(
            wrong_logins=3, wrong_login_delay=30.0, address_wrong_logins=6, name_wrong_logins=50
        )
        return Gate(settings, self.clock)

    def let_through(self, session: Session, count: int = 20, gate: Gate | None = None) -> int:
        """How many wrong logins are, each for a name of its own."""
        done = 0
        for number in range(count):
            if (gate or self.gate).admits(session, f"name {number}"):
                (gate or self.gate).failed(session, f"name {number}")
                done += 1
        return done

    def test_a_connection_has_an_allowance_for_all_names(self):
        session = support.session("-")
        self.assertEqual(self.let_through(session), 3)
        self.clock.now += 29.9
        self.assertEqual(self.let_through(session), 0)
        self.clock.now += 0.1
        self.assertEqual(self.let_through(session), 1)
        self.assertEqual(self.let_through(support.session("-")), 3)

    def test_it_moves_along_with_the_connection(self):
        session = support.session("-")
        self.let_through(session, 2)
        carried = session.carry([], session.dump_state())
        there = Session.adopt(carried, SessionLimits(), self.clock.now)
        self.assertEqual(self.let_through(there, gate=self.new_gate()), 1)

    def test_nothing_is_kept_where_there_are_no_limits(self):
        gate = Gate(
            AccountsSettings(wrong_logins=0, address_wrong_logins=0, name_wrong_logins=0),
            self.clock,
        )
        session = support.session()
        self.assertEqual(self.let_through(session, 500, gate), 500)
        gate.succeeded(session, "bob")
        self.assertEqual(session.state, {})

    def test_a_flood_of_refusals_is_a_line_every_ten_seconds(self):
        with capturedLogs() as events:
            for _ in range(30):
                self.let_through(support.session("192.0.2.1:5"), 100)
                self.clock.now += 1.0
        lines = [(event["log_level"], formatEvent(event)) for event in events]
        told = "logins refused after too many wrong ones, the last from 192.0.2.1"
        self.assertEqual(len(lines), 3)
        self.assertEqual(lines[0], (LogLevel.warn, f"1 {told}"))
        self.assertTrue(all(line.endswith(told) for _, line in lines), lines)

    def test_threads_share_one_account_of_it(self):
        sessions = [support.session(f"[2001:db8::{number}]:1") for number in range(4)]

        def attack(number: int) -> int:
            return self.let_through(sessions[number], 200)

        done = support.in_threads(4, attack)
        # each of the threads may be between the look and the note of one
        self.assertLessEqual(sum(done), 6 + 3)
