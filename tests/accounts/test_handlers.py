"""The replies of ping, register and login, byte by byte, and what is told of them."""

import dataclasses
import os
import re

import argon2
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs, eventAsJSON, formatEvent
from twisted.trial.unittest import SynchronousTestCase

import tests.properties  # noqa: F401
from ccserver.accounts import app, handlers
from ccserver.accounts.messages import Login, LoginReply, Register, RegisterReply, Result
from ccserver.accounts.passwords import Passwords
from ccserver.accounts.registrar import Registrar
from ccserver.accounts.store import Store
from ccserver.app import App
from ccserver.core.session import Session
from ccserver.errors import BadBody, ConfigError
from tests.accounts import support

ZEROS = bytes(96)


def register(name: bytes, password: bytes, type: int = 0) -> bytes:
    """The reply's body, by way of the body on the wire."""
    body = type.to_bytes(4, "big", signed=True) + name.ljust(56, b"\0") + password.ljust(40, b"\0")
    return ask(5, body, support.session())


def login(name: bytes, password: bytes, session: Session | None = None) -> bytes:
    """The reply's body, by way of the body on the wire."""
    body = name.ljust(56, b"\0") + password.ljust(40, b"\0")
    return ask(6, body, session or support.session())


def ask(code: int, body: bytes, session: Session) -> bytes:
    """What the framework does with a packet."""
    handler = app.handlers[code]
    reply: bytes = handler.function(session, handler.decode(body)).encode()
    return reply


def registered(result: int, name: bytes) -> bytes:
    """What a register reply must be."""
    return result.to_bytes(4, "big") + name.ljust(96, b"\0")


def logged_in(name: bytes) -> bytes:
    """What a successful login's reply must be."""
    return name.ljust(96, b"\0")


UNAVAILABLE = bytes(56) + b"\0\0\0\3" + bytes(36)


class LayoutTests(SynchronousTestCase):
    def test_names_and_codes_and_threads(self):
        told = [(code, h.name, h.in_thread) for code, h in sorted(app.handlers.items())]
        self.assertEqual(told, [(0, "ping", False), (5, "register", True), (6, "login", True)])

    def test_application_is_an_app(self):
        self.assertIsInstance(app, App)

    def test_it_is_written_with_public_names_alone(self):
        folder = os.path.dirname(handlers.__file__)
        for name in os.listdir(folder):
            if name.endswith(".py"):
                with open(os.path.join(folder, name)) as file:
                    text = file.read()
                used = set(re.findall(r"^ *(?:from|import) (ccserver[\w.]*)", text, re.MULTILINE))
                used = {module for module in used if not module.startswith("ccserver.accounts")}
                self.assertLessEqual(used, {"ccserver", "ccserver.config"}, name)

    def test_sizes(self):
        sizes = [m.size for m in (Register, RegisterReply, Login, LoginReply)]
        self.assertEqual(sizes, [100, 100, 96, 96])

    def test_requests_do_not_show_their_password(self):
        for message in (Register, Login):
            self.assertNotIn("secret", repr(message(username="bob", password="secret")))

    def test_a_body_of_another_size_is_bad(self):
        for code, size in ((5, 99), (5, 101), (6, 95), (6, 97), (6, 0), (0, 1)):
            self.assertRaises(BadBody, app.handlers[code].decode, bytes(size))

    def test_ping_is_answered_with_an_empty_body(self):
        coroutine = handlers.ping(support.session(), None)
        self.assertEqual(self.successResultOf(_deferred(coroutine)), b"")


def _deferred(coroutine):
    from twisted.internet.defer import ensureDeferred

    return ensureDeferred(coroutine)


class ReplyTests(SynchronousTestCase):
    def setUp(self) -> None:
        support.open_accounts(self, support.folder(self))

    def test_register_done(self):
        self.assertEqual(register(b"bob", b"secret"), registered(0, b"bob"))

    def test_register_ignores_the_type(self):
        self.assertEqual(register(b"bob", b"secret", type=-7), registered(0, b"bob"))

    def test_register_a_taken_name(self):
        register(b"bob", b"secret")
        self.assertEqual(register(b"bob", b"other"), registered(1, b"bob"))
        self.assertEqual(login(b"bob", b"secret"), logged_in(b"bob"))
        self.assertEqual(login(b"bob", b"other"), ZEROS)

    def test_register_what_is_not_acceptable(self):
        for name, password in [
            (b"", b"secret"),
            (b"bob", b""),
            (b" bob", b"secret"),
            (b"bob\n", b"secret"),
            (b"bob", b"se\x07cret"),
            (b"bob", b"   "),
            (b"\xc0\xee\xcb\xc4", b"secret"),
            (b"\xed\xa0\x80", b"secret"),
            (b"bob", b"\xc3\xdc\xc2\xeb"),
        ]:
            self.assertEqual(register(name, password), registered(2, name))
            self.assertEqual(login(name, password), ZEROS)

    def test_login_echoes_the_name(self):
        register("张三".encode(), "密码".encode())
        self.assertEqual(login("张三".encode(), "密码".encode()), logged_in("张三".encode()))

    def test_login_failures_are_all_the_same(self):
        register(b"bob", b"secret")
        for name, password in [
            (b"bob", b"wrong"),
            (b"bob", b""),
            (b"bob", b"secret\x01"),
            (b"nobody", b"secret"),
            (b"", b""),
            (b"\xff\xfe", b"secret"),
        ]:
            self.assertEqual(login(name, password), ZEROS)

    def test_names_are_case_sensitive(self):
        register(b"Bob", b"secret")
        self.assertEqual(login(b"bob", b"secret"), ZEROS)
        self.assertEqual(register(b"bob", b"other"), registered(0, b"bob"))
        self.assertEqual(login(b"Bob", b"secret"), logged_in(b"Bob"))

    def test_names_that_look_alike_are_different(self):
        composed, decomposed = "é".encode(), "e\u0301".encode()
        register(composed, b"secret")
        self.assertEqual(login(decomposed, b"secret"), ZEROS)
        self.assertEqual(register(decomposed, b"secret"), registered(0, decomposed))

    def test_strings_end_at_the_first_nul(self):
        self.assertEqual(register(b"bob\0garbage", b"secret\0\xff\xff"), registered(0, b"bob"))
        self.assertEqual(login(b"bob\0other", b"secret\0other"), logged_in(b"bob"))

    def test_the_last_byte_of_a_string_never_counts(self):
        self.assertEqual(register(b"n" * 56, b"p" * 40), registered(0, b"n" * 55))
        self.assertEqual(login(b"n" * 55 + b"x", b"p" * 39 + b"x"), logged_in(b"n" * 55))

    def test_sql_in_names_and_passwords_is_text(self):
        register(b"bob", b"secret")
        for text in (b"' OR '1'='1", b"bob'--", b"'; DROP TABLE accounts; --", b"%", b"_", b"bo%"):
            self.assertEqual(login(text, text), ZEROS)
            self.assertEqual(register(text, text), registered(0, text))
            self.assertEqual(login(text, text), logged_in(text))
        self.assertEqual(login(b"bob", b"secret"), logged_in(b"bob"))

    def test_success_is_kept_in_the_session(self):
        register(b"bob", b"secret")
        session = support.session()
        login(b"bob", b"wrong", session)
        self.assertEqual((session.state, session.known), ({}, False))
        login(b"bob", b"secret", session)
        self.assertEqual((session.state, session.known), ({"user": "bob"}, True))
        login(b"bob", b"wrong", session)
        self.assertEqual(session.state, {"user": "bob"})

    def test_registering_is_not_logging_in(self):
        session = support.session()
        handlers.register(session, Register(username="bob", password="secret"))
        self.assertEqual(session.state, {})

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=56), st.binary(max_size=40))
    def test_any_bytes_get_a_reply_of_the_exact_size(self, name, password):
        shown = name.ljust(56, b"\0")[:55].partition(b"\0")[0]
        reply = register(name, password)
        self.assertIn(reply[:4], (b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\2"))
        self.assertEqual(reply[4:], shown.ljust(96, b"\0"))
        again = login(name, password)
        if reply[3] == 0:
            self.assertEqual(again, logged_in(shown))
        else:
            self.assertIn(again, (logged_in(shown), ZEROS))
        self.assertEqual(len(again), 96)


class SecrecyTests(SynchronousTestCase):
    """The password is in no reply and no log event, in no field of it."""

    def setUp(self) -> None:
        self.folder = support.folder(self)
        support.open_accounts(self, self.folder)

    def test_no_password_in_replies(self):
        for name in (b"bob", b"", b"\xff"):
            self.assertNotIn(b"sesame", register(name, b"sesame"))
            self.assertNotIn(b"sesame", login(name, b"sesame"))

    def test_no_password_in_the_log(self):
        with capturedLogs() as events:
            for name in (b"bob", b"bob", b"", b"\xff"):
                register(name, b"sesame")
                login(name, b"sesame")
                login(name, b"sesame2")
            handlers.close_accounts(support.worker(self.folder))
            os.rename(self.folder, self.folder + ".away")
            self.addCleanup(os.rename, self.folder + ".away", self.folder)
            register(b"bob", b"sesame")
        self.assertIn(LogLevel.error, [event["log_level"] for event in events])
        told = "".join(eventAsJSON(event) + formatEvent(event) for event in events)
        self.assertNotIn("sesame", told)
        self.assertNotIn("argon2", told)

    def test_nothing_above_debug_is_told_of_a_request(self):
        with capturedLogs() as events:
            register(b"bob", b"sesame")
            login(b"bob", b"sesame")
            login(b"bob", b"wrong")
        self.assertEqual({event["log_level"] for event in events}, {LogLevel.debug})

    def test_no_password_in_the_database(self):
        register(b"bob", b"sesame")
        for name in os.listdir(self.folder):
            with open(os.path.join(self.folder, name), "rb") as file:
                self.assertNotIn(b"sesame", file.read())


class LoginWorkTests(SynchronousTestCase):
    """How long a login takes does not tell whether there is such an account."""

    def setUp(self) -> None:
        self.folder = support.folder(self)
        support.open_accounts(self, self.folder, cost="HashTimeCost = 2\nHashMemory = 4MiB")
        register(b"bob", b"secret")

    def work(self, name: bytes, password: bytes) -> list[str]:
        """The parameters of the hashes that a login is verified against."""
        done: list[str] = []
        real = argon2.PasswordHasher.verify

        def counted(hasher: argon2.PasswordHasher, stored: str, given: bytes) -> bool:
            done.append(stored.rpartition("$")[0].rpartition("$")[0])
            return real(hasher, stored, given)

        patch = self.patch(argon2.PasswordHasher, "verify", counted)
        self.assertEqual(login(name, password), ZEROS)
        patch.restore()
        return done

    def test_every_failure_verifies_one_hash_of_the_same_cost(self):
        wrong = self.work(b"bob", b"wrong")
        self.assertEqual(len(wrong), 1)
        for name, password in [(b"no", b"wrong"), (b"", b""), (b"\xff", b"x"), (b" no", b"\xff")]:
            self.assertEqual(self.work(name, password), wrong)

    def test_every_failure_looks_into_the_database_once(self):
        looked: list[str] = []
        real = Store.find

        def counted(store: Store, name: str) -> str | None:
            looked.append(name)
            return real(store, name)

        self.patch(Store, "find", counted)
        for name, password in [(b"bob", b"wrong"), (b"no", b"wrong"), (b"", b""), (b"\xff", b"x")]:
            login(name, password)
        self.assertEqual(looked, ["bob", "no", "", ""])


class RehashTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = support.folder(self)
        self.store = Store(handlers.database_url("", os.path.join(self.folder, "log")), 2)
        self.store.prepare()
        self.addCleanup(self.store.close)
        self.cheap = Registrar(self.store, Passwords(support.CHEAP))
        self.dear = Registrar(
            self.store, Passwords(dataclasses.replace(support.CHEAP, hash_time_cost=2))
        )
        self.cheap.register("bob", "secret")
        self.before = self.store.find("bob")

    def test_a_success_stores_a_hash_of_the_cost_in_force(self):
        self.assertTrue(self.dear.login("bob", "secret"))
        after = self.store.find("bob")
        self.assertIn("t=2", after)
        self.assertTrue(self.dear.login("bob", "secret"))
        self.assertEqual(self.store.find("bob"), after)

    def test_a_failure_stores_nothing(self):
        self.assertFalse(self.dear.login("bob", "wrong"))
        self.assertEqual(self.store.find("bob"), self.before)

    def test_a_hash_of_the_cost_in_force_is_kept(self):
        self.assertTrue(self.cheap.login("bob", "secret"))
        self.assertEqual(self.store.find("bob"), self.before)

    def test_another_workers_new_hash_is_not_overwritten(self):
        self.store.replace("bob", "what was read before", "mine")
        self.assertEqual(self.store.find("bob"), self.before)


class StartTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = support.folder(self)

    def told(self, info: str) -> list[str]:
        with capturedLogs() as events:
            support.open_accounts(self, self.folder, info)
        return [formatEvent(event) for event in events]

    def test_where_the_accounts_are_is_told(self):
        path = os.path.join(self.folder, "ccserver.db")
        self.assertEqual(self.told(""), [f"accounts are kept in {path}"])

    def test_a_host_alone_is_told_to_name_no_database(self):
        path = os.path.join(self.folder, "ccserver.db")
        text = f"DBInfo = 127.0.0.1 names no database: accounts are kept in {path}"
        self.assertEqual(self.told("127.0.0.1"), [text])
        self.assertTrue(os.path.exists(path))

    def test_a_bad_dbinfo_is_a_config_error_that_names_the_file(self):
        started = support.worker(self.folder, "mysql://root:sesame@localhost/game")
        error = self.assertRaises(ConfigError, handlers.open_accounts, started)
        self.assertEqual((error.path, error.key), ("<text>", "DBInfo"))
        self.assertTrue(str(error).startswith("<text>:1: DBInfo names a database that is not su"))
        self.assertNotIn("sesame", str(error))

    def test_accounts_outlive_the_worker(self):
        for result in (0, 1):
            support.open_accounts(self, self.folder)
            self.assertEqual(register(b"bob", b"secret"), registered(result, b"bob"))
            handlers.close_accounts(support.worker(self.folder))

    def test_nothing_is_left_open_by_a_stop(self):
        support.open_accounts(self, self.folder)
        register(b"bob", b"secret")
        handlers.close_accounts(support.worker(self.folder))
        self.assertEqual(os.listdir(self.folder), ["ccserver.db"])

    def test_results_are_those_of_the_protocol(self):
        self.assertEqual([*Result], [0, 1, 2, 3])
