import struct
import threading
from itertools import chain
from typing import Any, ClassVar
from zlib import crc32

from tests import postgresql
from tests.functional.server import ServerCase, ServerProcess

PING, REGISTER, LOGIN = 0, 5, 6
DONE, TAKEN, NOT_ACCEPTABLE = range(3)
USERS, THREADS, RIVALS = 1000, 8, 16

CHEAP = {"app": "ccserver.accounts:app", "HashTimeCost": 1, "HashMemory": "8KiB", "LogLevel": 6}
CHEAP["WrongLogins"] = 0  # some tests guess


def registration(name, password):
    return struct.pack(">i56s40s", 7, name, password)


def credentials(name, password):
    return struct.pack("56s40s", name, password)


def password_of(name):
    return b"secret of " + name


def register(client, name):
    """The result of a registration."""
    reply = client.ask(REGISTER, registration(name, password_of(name)))
    return int.from_bytes(reply[:4], "big")


def login(client, name, password=None):
    """Whether a login succeeds."""
    reply = client.ask(LOGIN, credentials(name, password or password_of(name)))
    return reply[:56] == name.ljust(56, b"\0")


def packet(code, body=b""):
    return struct.pack(">HHI", 8 + len(body), code, crc32(body)) + body


def at_once(count, work):
    """What C{work} returns in each of so many threads that begin together."""
    together = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(number):
        together.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class WireTests(ServerCase):
    """The bundled application, byte for byte: PROTOCOL.md 3."""

    options: ClassVar = CHEAP

    def exchange(self, data, size):
        """The C{size} bytes that answer C{data}, and nothing behind them."""
        client = self.connect()
        client.socket.sendall(data)
        client.end()
        answer = client.read(size + 1)
        self.assertEqual(len(answer), size)
        return answer

    def test_a_ping_is_answered_with_a_header(self):
        self.assertEqual(
            self.exchange(bytes.fromhex("0008000000000000"), 8), bytes.fromhex("0008000000000000")
        )

    def test_a_ping_with_a_body_is_dropped(self):
        self.exchange(packet(PING, b"x"), 0)

    def test_a_registration_is_answered_with_108_bytes(self):
        answer = self.exchange(packet(REGISTER, registration(b"ann", b"secret")), 108)
        self.assertEqual(answer, packet(REGISTER, struct.pack(">I56s40x", DONE, b"ann")))

    def test_a_name_that_is_taken_is_result_1(self):
        client = self.connect()
        self.assertEqual([register(client, b"bob"), register(client, b"bob")], [DONE, TAKEN])

    def test_a_name_that_is_not_acceptable_is_result_2(self):
        answer = self.exchange(packet(REGISTER, registration(b"", b"secret")), 108)
        self.assertEqual(answer, packet(REGISTER, struct.pack(">I96x", NOT_ACCEPTABLE)))

    def test_a_login_is_answered_with_104_bytes(self):
        register(self.connect(), b"cid")
        answer = self.exchange(packet(LOGIN, credentials(b"cid", password_of(b"cid"))), 104)
        self.assertEqual(answer, packet(LOGIN, answer[8:]))
        self.assertEqual(answer[8:64], b"cid".ljust(56, b"\0"))
        self.assertNotIn(b"secret", answer)

    def test_a_wrong_password_and_an_unknown_user_are_the_same_zeros(self):
        register(self.connect(), b"dan")
        zeros = packet(LOGIN, bytes(96))
        for name in (b"dan", b"nobody"):
            self.assertEqual(self.exchange(packet(LOGIN, credentials(name, b"wrong")), 104), zeros)

    def test_a_body_of_another_size_is_dropped(self):
        for code, size in ((REGISTER, 99), (REGISTER, 101), (LOGIN, 95), (LOGIN, 97), (LOGIN, 0)):
            self.exchange(packet(code, b"x" * size), 0)

    def test_the_last_byte_of_a_string_is_forced_to_nul(self):
        self.assertEqual(register(self.connect(), b"x" * 56), DONE)
        name, password = b"x" * 55, password_of(b"x" * 56)[:39]
        self.assertTrue(login(self.connect(), name, password))

    def test_what_stands_behind_the_first_nul_is_ignored(self):
        client = self.connect()
        client.ask(REGISTER, registration(b"eve\0rubbish", b"secret\0more"))
        self.assertTrue(login(client, b"eve", b"secret"))

    def test_no_password_is_in_the_log(self):
        client = self.connect()
        register(client, b"fay")
        login(client, b"fay", b"wrong-secret")
        self.assertNotIn("secret", self.server.log)


class Crowd:
    """Many at once, on two workers: nobody is lost, nobody is there twice."""

    def connections(self, count):
        return [self.connect() for _ in range(count)]

    def test_every_registration_is_done_once_and_every_user_can_log_in(self):
        clients = self.connections(THREADS)
        users = [b"user %d" % number for number in range(USERS)]

        def registering(number):
            return [register(clients[number], name) for name in users[number::THREADS]]

        def logging_in(number):
            mine = users[(number + 1) % THREADS :: THREADS]  # those of another one
            return [login(clients[number], name) for name in mine]

        results = list(chain.from_iterable(at_once(THREADS, registering)))
        self.assertEqual(results, [DONE] * USERS)
        known = list(chain.from_iterable(at_once(THREADS, logging_in)))
        self.assertEqual(known, [True] * USERS)
        again = [register(clients[0], name) for name in users[:20]]
        self.assertEqual(again, [TAKEN] * 20)

    def test_of_those_who_register_the_same_name_at_once_exactly_one_gets_it(self):
        clients = self.connections(RIVALS)
        for turn in range(10):
            name = b"rival %d" % turn

            def registering(number, name=name):
                return register(clients[number], name)

            results = at_once(RIVALS, registering)
            self.assertEqual(sorted(results), [DONE] + [TAKEN] * (RIVALS - 1))

    def test_the_password_that_counts_is_that_of_the_one_who_got_the_name(self):
        clients = self.connections(RIVALS)
        passwords = [b"password %d" % number for number in range(RIVALS)]

        def registering(number):
            body = registration(b"contested", passwords[number])
            return int.from_bytes(clients[number].ask(REGISTER, body)[:4], "big")

        winner = at_once(RIVALS, registering).index(DONE)
        known = [login(clients[0], b"contested", password) for password in passwords]
        self.assertEqual([n for n in range(RIVALS) if known[n]], [winner])


class SqliteCrowdTests(Crowd, ServerCase):
    options: ClassVar = {**CHEAP, "workers": 2}


class PostgresqlCrowdTests(Crowd, ServerCase):
    """Each with a server and a database of its own."""

    def setUp(self):
        url = postgresql.server().database()
        self.addCleanup(lambda: postgresql.server().drop(url))
        self.server = ServerProcess(workers=2, DBInfo=url, **CHEAP)
        self.addCleanup(self.server.close)
        self.server.start()
