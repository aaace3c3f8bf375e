"""The bundled application under attack and faults: guessed passwords, a lost database, bugs."""

import re
import signal
import struct
import threading
import time
from collections import Counter
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests import postgresql
from tests.functional.server import ServerCase, ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch
from tests.functional.test_registrations import (
    DONE,
    LOGIN,
    PING,
    REGISTER,
    credentials,
    password_of,
    register,
    registration,
)

OPTIONS = {"app": "ccserver.accounts:app", "HashTimeCost": 1, "HashMemory": "8KiB"}
UNLIMITED = {"WrongLogins": 0, "AddressWrongLogins": 0, "NameWrongLogins": 0}

RIGHT, WRONG, LATER, ODD = "right", "wrong", "later", "odd"

BROKEN = b'''
"""The accounts with handlers that fail, each in a way of its own."""

from ccserver.accounts import app
from ccserver.accounts.messages import Login, Register
from ccserver.accounts.registrar import Registrar


def login(registrar, name, password):
    raise RuntimeError("the registrar is broken")


Registrar.login = login


@app.message(100)
def shown(session, request: Login) -> Login:
    raise ValueError(request)


@app.message(101)
async def formatted(session, request: Login) -> Login:
    raise KeyError(f"{request} and {request!r}")


@app.message(102)
def too_long(session, request: Login) -> Login:
    return Login(username=request.username, password=request.password * 9)


@app.message(103)
async def no_text(session, request: Login) -> Login:
    return Login(username=request.username, password=[request.password])
'''


def try_login(client, name, password):
    """What the reply to a login says."""
    reply = client.ask(LOGIN, credentials(name, password))
    if reply == name.ljust(96, b"\0"):
        return RIGHT
    if reply == bytes(96):
        return WRONG
    return LATER if reply == bytes(56) + b"\0\0\0\3" + bytes(36) else ODD


def resident(pid):
    """MiB of resident memory of a process."""
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"^VmRSS:\s*([0-9]+) kB", file.read(), re.M)[1]) / 1024


class GuessingTests(ServerCase):
    options: ClassVar = OPTIONS

    def test_a_reload_does_not_give_a_connection_new_guesses(self):
        client = self.connect()
        for number in range(10):
            self.assertEqual(try_login(client, b"moving %d" % number, b"guess"), WRONG)
        done = self.server.log.count(" reload done: ")
        self.server.send_signal(signal.SIGHUP)
        wait_until(lambda: self.server.log.count(" reload done: ") > done, "the reload")
        self.assertEqual(try_login(client, b"moving on", b"guess"), LATER)
        # the new worker knows no addresses yet
        self.assertEqual(try_login(self.connect(), b"moving on", b"guess"), WRONG)

    def test_guesses_are_answered_later_after_ten_and_the_connection_stays(self):
        client = self.connect()
        register(client, b"ann")
        replies = [try_login(client, b"ann", b"guess %d" % number) for number in range(15)]
        self.assertEqual(replies, [WRONG] * 10 + [LATER] * 5)
        self.assertEqual(try_login(client, b"ann", password_of(b"ann")), LATER)
        self.assertEqual(client.ask(PING), b"")
        wait_until(lambda: "logins refused after too many wrong ones" in self.server.log, "a line")

    def test_other_names_at_the_address_are_not_held_up(self):
        attacker, client = self.connect(), self.connect()
        register(client, b"bob")
        for _ in range(20):
            try_login(attacker, b"nobody", b"guess")
        self.assertEqual(try_login(client, b"bob", password_of(b"bob")), RIGHT)


class StrangersTests(ServerCase):
    """Of who has not logged in, nothing longer than a login or a registration is wanted."""

    options: ClassVar = {**OPTIONS, "MaxPacketLength": 108, "FirstPacketTimeout": 1}

    def test_all_messages_fit_into_the_shortest_bound(self):
        client = self.connect()
        self.assertEqual(client.ask(PING), b"")
        self.assertEqual(register(client, b"ann"), DONE)
        reply = client.ask(LOGIN, credentials(b"ann", password_of(b"ann")))
        self.assertEqual(reply[:4], b"ann\0")

    def test_what_is_longer_is_refused_from_its_header(self):
        client = self.connect()
        client.socket.sendall(struct.pack(">HHI", 109, REGISTER, 0))
        self.assertEqual(client.rest(), [])
        wait_until(lambda: "closed: bad_length" in self.server.log, "its end")

    def test_who_says_nothing_is_closed(self):
        self.assertEqual(self.connect().rest(), [])
        wait_until(lambda: "closed: first_packet_timeout" in self.server.log, "its end")


class NarrowTests(ServerCase):
    """A server may allow those who have logged in more than strangers."""

    options: ClassVar = {**OPTIONS, "StrangerPacketLength": 108}

    def test_what_is_longer_than_theirs_is_refused_of_strangers_alone(self):
        known, stranger = self.connect(), self.connect()
        self.assertEqual(register(known, b"ann"), DONE)
        known.ask(LOGIN, credentials(b"ann", password_of(b"ann")))
        for client in (known, stranger):
            client.send((9, bytes(101)))  # a code that nobody handles
        self.assertEqual(known.ask(PING), b"")
        self.assertEqual(stranger.rest(), [])
        wait_until(lambda: "closed: bad_length" in self.server.log, "its end")


class LoginTimeoutTests(ServerCase):
    options: ClassVar = {**OPTIONS, "LoginTimeout": 2}

    def test_who_is_still_a_stranger_behind_the_time_is_closed(self):
        client = self.connect()
        self.assertEqual(client.ask(PING), b"")
        self.assertEqual(client.rest(), [])
        wait_until(lambda: "closed: login_timeout" in self.server.log, "its end")


class SecretsTests(SynchronousTestCase):
    """With the log at its most talkative, passwords are in no file of the server's folder."""

    def assert_untold(self, server, *secrets):
        told = server.log + server.stderr + server.read("stdout")
        for secret in secrets:
            self.assertNotIn(secret, told)

    def test_a_handler_that_fails_leaves_no_password_in_the_log(self):
        options = {**OPTIONS, "app": "broken:app", "LogLevel": 8}
        server = ServerProcess(**options)
        self.addCleanup(server.close)
        server.write("broken.py", BROKEN)
        server.start()
        with server.connect() as client:
            client.ask(REGISTER, registration(b"ann", b"sesame"))
            codes = (LOGIN, 100, 101, 102, 103)
            client.send(*((code, credentials(b"ann", b"sesame")) for code in codes))
            client.ask(PING)
        self.assertEqual(server.log.count(" raised"), len(codes), server.log)
        self.assertIn("ann", server.log)
        self.assert_untold(server, "sesame", "argon2id$")

    def test_a_database_that_refuses_leaves_no_password_in_the_log(self):
        for info in (
            "127.0.0.1;1;ann;sesame;accounts",
            "postgresql://ann:sesame@127.0.0.1:1/accounts",
            "postgresql://ann@127.0.0.1:1/accounts?password=sesame",
            "postgresql://ann:sesame@127.0.0.1:1/accounts?nonsense=1",
        ):
            with ServerProcess(DBInfo=info, LogLevel=8, **OPTIONS) as server:
                with server.connect() as client:
                    self.assertEqual(try_login(client, b"ann", b"open2"), LATER)
                wait_until(lambda server=server: " fails: " in server.log, "the line")
                self.assert_untold(server, "sesame", "open2")

    def test_a_database_that_is_none_stops_the_start_without_its_password(self):
        for info in (
            "mysql://ann:sesame@h/db",
            "h;x;ann;sesame;db",
            "postgresql://ann:sesame@h:x/d",
        ):
            server = ServerProcess(DBInfo=info, LogLevel=8, **OPTIONS)
            self.addCleanup(server.close)
            server.launch()
            self.assertNotEqual(server.wait(), 0)
            self.assertIn("DBInfo", server.log + server.stderr)
            self.assert_untold(server, "sesame")


class MemoryTests(SynchronousTestCase):
    def test_many_threads_that_hash_take_the_memory_of_the_hashing_ones(self):
        options = {**OPTIONS, "HashMemory": "19MiB", "HashThreads": 2}
        with ServerProcess(ProcMsgRecvWorkThreadCount=20, **options) as server:
            clients = [server.connect() for _ in range(20)]
            (pid,) = server.workers().values()
            before = resident(pid)
            most = 0.0
            for turn in range(10):
                for place, client in enumerate(clients):
                    name = b"user %d %d" % (turn, place)
                    client.send((REGISTER, registration(name, b"secret")))
                replies = [client.receive() for client in clients]
                self.assertEqual([reply[1][3] for reply in replies], [DONE] * 20)
                most = max(most, resident(pid))
            for client in clients:
                client.close()
        measured("accounts: worker before 200 registrations, MiB", before)
        measured("accounts: worker at most during 200 registrations, MiB", most)
        # a thread's arena may hold a second one, where small things lie in the first
        self.assertLess(most - before, 2 * 2 * 19 + 24)


class Customer(threading.Thread):
    """Logs in again and again, each fourth time with a wrong password.

    @ivar seen: how often which reply came.
    @ivar last_later: when one was last told to try later, monotonic.
    """

    def __init__(self, client, names):
        super().__init__(daemon=True)
        self.seen = Counter()
        self.last_later = 0.0
        self.error = None
        self._client = client
        self._names = names
        self._enough = threading.Event()

    def run(self):
        turn = 0
        try:
            while not self._enough.is_set():
                name = self._names[turn % len(self._names)]
                turn += 1
                expected = WRONG if turn % 4 == 0 else RIGHT
                password = password_of(name) if expected == RIGHT else b"wrong"
                reply = try_login(self._client, name, password)
                if reply == LATER:
                    self.last_later = time.monotonic()
                    time.sleep(0.001)  # so that an outage does not use up the load
                self.seen[reply if reply in (expected, LATER) else ODD] += 1
        except Exception as error:
            self.error = error

    def stop(self):
        self._enough.set()
        self.join(30)


class OutageTests(SynchronousTestCase):
    def test_logins_are_right_or_told_to_come_later_while_the_database_comes_and_goes(self):
        database = postgresql.server()
        url = database.database()
        self.addCleanup(lambda: postgresql.server().drop(url))
        with ServerProcess(workers=2, DBInfo=url, LogLevel=7, **OPTIONS, **UNLIMITED) as server:
            names = [b"user %d" % number for number in range(40)]
            with server.connect() as client:
                self.assertEqual([register(client, name) for name in names], [DONE] * len(names))
            customers = [Customer(server.connect(), names[place::8]) for place in range(8)]
            for customer in customers:
                self.addCleanup(customer.stop)
                customer.start()
            outages = [self.outage(server, database, customers) for _ in range(2)]
            wait_until(lambda: served(customers) >= 10_000, "10,000 logins")
            for customer in customers:
                customer.stop()
            seen = sum((customer.seen for customer in customers), Counter())
            self.assertEqual([c.error for c in customers if c.error], [])
            log = server.log
        measured("accounts: logins answered", seen[RIGHT] + seen[WRONG])
        measured("accounts: logins told to come later", seen[LATER])
        measured("accounts: longest until all are served after a return, seconds", max(outages))
        self.assertEqual(seen[ODD], 0, seen)
        self.assertGreaterEqual(seen[RIGHT] + seen[WRONG], 10_000)
        self.assertGreater(min(seen[RIGHT], seen[WRONG]), 2000, seen)
        self.assertLess(max(outages), 2.0)
        self.assertNotIn("Traceback", log)
        # each worker tells of its first; the second comes too soon for a line of its own
        self.assertGreaterEqual(log.count(" is back after "), 2, log)

    def outage(self, server, database, customers):
        """One stop and start; the seconds behind the start in which somebody was put off."""
        enough = served(customers) + 2500
        wait_until(lambda: served(customers) >= enough, "2,500 logins")
        database.stop()
        stopped = time.monotonic()
        wait_until(
            lambda: all(customer.last_later > stopped for customer in customers),
            "everybody to be told to come later",
        )
        database.start()
        with Stopwatch(server) as watch:
            returned = time.monotonic()
            before = [answered(customer) for customer in customers]
            wait_until(
                lambda: all(
                    answered(c) > old + 50 for c, old in zip(customers, before, strict=True)
                ),
                "everybody to be served again",
            )
        return max(0.0, *(watch.own(returned, customer.last_later) for customer in customers))


def answered(customer):
    return customer.seen[RIGHT] + customer.seen[WRONG]


def served(customers):
    return sum(map(answered, customers))
