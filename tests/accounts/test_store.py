"""Store: on SQLite and PostgreSQL alike, with rivals, and while the database is away."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter

from sqlalchemy import event, make_url
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

import ccserver
from ccserver.accounts import handlers, postgresql, sqlite
from ccserver.accounts.dbinfo import database_url
from ccserver.accounts.store import Store, Unavailable
from ccserver.errors import ConfigError
from tests import postgresql as servers
from tests.accounts import support
from tests.accounts.test_handlers import (
    UNAVAILABLE,
    ZEROS,
    logged_in,
    login,
    register,
    registered,
)
from tests.functional.stopwatch import Stopwatch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(ccserver.__file__)))


class OnSqlite:
    """A database of its own for each test, SQLite."""

    def setUp(self) -> None:
        self.folder = support.folder(self)
        self.info = os.path.join(self.folder, "accounts.db")

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(self.info)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()


class OnPostgresql:
    """A database of its own for each test, PostgreSQL."""

    def setUp(self) -> None:
        self.folder = support.folder(self)
        self.info = support.database(self)
        self.server = servers.server()

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        return servers.execute(self.info, statement)


class StoreTests:
    """What holds on both."""

    def open(self, threads: int = 8) -> Store:
        store = Store(database_url(self.info, os.path.join(self.folder, "log")), threads)
        self.addCleanup(store.close)
        store.prepare()
        return store

    def test_an_account_is_found_once_it_is_added(self):
        store = self.open()
        self.assertIsNone(store.find("bob"))
        self.assertTrue(store.add("bob", "hash"))
        self.assertEqual(store.find("bob"), "hash")

    def test_a_name_is_added_once(self):
        store = self.open()
        store.add("bob", "hash")
        self.assertFalse(store.add("bob", "other"))
        self.assertEqual(store.find("bob"), "hash")

    def test_an_add_whose_confirmation_was_lost_is_recognised(self):
        store = self.open()
        store.add("bob", "salted hash")
        self.assertTrue(store.add("bob", "salted hash"))

    def test_names_are_compared_byte_by_byte(self):
        store = self.open()
        names = ["bob", "Bob", "BOB", "b\u00f6b", "bo\u0308b", "bob\u200b", "\U0001f600", "1", "01"]
        for name in names:
            self.assertTrue(store.add(name, f"hash of {name}"))
        for name in names:
            self.assertEqual(store.find(name), f"hash of {name}")
        self.assertIsNone(store.find("bOB"))
        self.assertIsNone(store.find(""))

    def test_the_time_of_creation_is_kept_in_utc(self):
        self.open().add("bob", "hash")
        ((created,),) = self.rows("SELECT created_at FROM accounts")
        text = str(created) if isinstance(created, str) else created.strftime("%Y-%m-%d %H:%M:%S%z")
        self.assertTrue(text.startswith(time.strftime("%Y-%m-%d", time.gmtime())), text)

    def test_the_table_is_made_once_by_workers_that_start_at_once(self):
        results = support.in_threads(8, lambda n: self.open().add(f"user{n}", "hash"))
        self.assertEqual(results, [True] * 8)
        self.assertEqual(self.rows("SELECT count(*) FROM accounts"), [(8,)])

    def test_processes_of_threads_make_each_account_once(self):
        """Two workers of 8 threads that start at once on a new database."""
        command = [sys.executable, "-m", "tests.accounts.contender"]
        rivals = [
            subprocess.Popen(
                [*command, self.folder, self.info, "8", "25"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": ROOT},
                cwd=ROOT,
                text=True,
            )
            for _ in range(2)
        ]
        for rival in rivals:
            self.addCleanup(rival.wait)
            self.addCleanup(rival.kill)
            self.addCleanup(rival.stdout.close)
            self.assertEqual(rival.stdout.readline(), "ready\n")
        for rival in rivals:
            rival.stdin.write("go\n")
            rival.stdin.close()
        counts: Counter[str] = Counter()
        for rival in rivals:
            for name, result, count in json.loads(rival.stdout.read()):
                counts[name, result] += count
        expected = {}
        for number in range(25):
            expected[f"user{number}", "DONE"] = 1
            expected[f"user{number}", "NAME_TAKEN"] = 15
        self.assertEqual(counts, expected)
        self.assertEqual(self.rows("SELECT count(*) FROM accounts"), [(25,)])

    def test_a_use_after_the_close_opens_it_again(self):
        store = self.open()
        store.close()
        self.assertTrue(store.add("bob", "hash"))

    def test_a_lost_table_is_unavailable_and_told_without_values(self):
        store = self.open()
        self.rows("DROP TABLE accounts")
        with capturedLogs() as events:
            self.assertRaises(Unavailable, store.add, "bob", "secret hash")
        (line,) = map(formatEvent, events)
        self.assertIn("accounts", line)
        self.assertNotIn("secret", line)
        self.assertNotIn("\n", line)


class ForeignConstraintTests:
    """An administrator has forbidden some rows: it is told, without what is in them."""

    def test_an_account_that_is_forbidden_is_unavailable(self):
        store = self.restricted()
        with capturedLogs() as events:
            self.assertRaises(Unavailable, store.add, "eve", "$argon2id$sesame")
        self.assert_told(events)
        self.assertIsNone(store.find("eve"))
        self.assertTrue(store.add("bob", "hash"))

    def test_a_hash_that_is_forbidden_is_unavailable(self):
        store = self.restricted()
        store.add("bob", "hash")
        with capturedLogs() as events:
            self.assertRaises(Unavailable, store.replace, "bob", "hash", "$argon2id$sesame")
        self.assert_told(events)
        self.assertEqual(store.find("bob"), "hash")

    def restricted(self) -> Store:
        self.execute(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY " + self.GENERATED + ", "
            "username TEXT NOT NULL UNIQUE, created_at TIMESTAMP NOT NULL, "
            "password_hash TEXT NOT NULL CONSTRAINT no_argon2 CHECK (password_hash LIKE 'h%'))"
        )
        store = Store(database_url(self.info, os.path.join(self.folder, "log")), 2)
        self.addCleanup(store.close)
        return store

    def assert_told(self, events) -> None:
        (line,) = [formatEvent(event) for event in events]
        self.assertIn("no_argon2", line)
        self.assertNotIn("sesame", line)
        self.assertNotIn("eve", line)


class SqliteForeignConstraintTests(OnSqlite, ForeignConstraintTests, SynchronousTestCase):
    GENERATED = ""

    def execute(self, statement: str) -> None:
        self.rows(statement)


class PostgresqlForeignConstraintTests(OnPostgresql, ForeignConstraintTests, SynchronousTestCase):
    GENERATED = "GENERATED ALWAYS AS IDENTITY"

    def execute(self, statement: str) -> None:
        self.rows(statement)


class SqliteStoreTests(OnSqlite, StoreTests, SynchronousTestCase):
    def mode(self, path: str) -> int:
        return os.stat(path).st_mode & 0o777

    def test_a_new_file_is_its_owners_alone(self):
        self.addCleanup(os.umask, os.umask(0))
        self.open().add("bob", "hash")
        for suffix in ("", "-wal", "-shm"):
            self.assertEqual(self.mode(self.info + suffix), 0o600, suffix)

    def test_an_existing_file_keeps_its_mode(self):
        sqlite3.connect(self.info).close()
        os.chmod(self.info, 0o640)
        self.open()
        self.assertEqual(self.mode(self.info), 0o640)

    def test_it_is_in_wal_mode(self):
        self.open()
        self.assertEqual(self.rows("PRAGMA journal_mode"), [("wal",)])

    def test_the_switch_to_wal_mode_waits_for_another_process(self):
        other = sqlite3.connect(self.info, isolation_level=None, check_same_thread=False)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.2, other.execute, ["COMMIT"])
        timer.start()
        self.addCleanup(timer.join)
        with capturedLogs() as events:
            self.open()
        self.assertEqual(events, [])

    def test_a_file_that_was_removed_is_made_again_as_at_the_start(self):
        store = self.open()
        store.close()
        os.unlink(self.info)
        support.quick_retry(self)
        with capturedLogs() as events:
            self.assertRaises(Unavailable, store.find, "bob")
            support.wait_until(lambda: _added(store, "bob"))
        self.assertEqual(events[0]["log_level"], LogLevel.error)
        self.assertEqual(self.mode(self.info), 0o600)

    def test_a_path_is_taken_literally(self):
        name = "a?b#c%20 d&mode=memory.db"
        self.info = os.path.join(self.folder, name)
        self.open().add("bob", "hash")
        self.assertEqual(sorted(os.listdir(self.folder)), [name, f"{name}-shm", f"{name}-wal"])

    def test_readers_do_not_wait_for_a_writer(self):
        store = self.open()
        store.add("bob", "hash")
        writer = sqlite3.connect(self.info, isolation_level=None)
        self.addCleanup(writer.close)
        writer.execute("BEGIN IMMEDIATE")
        self.assertEqual(store.find("bob"), "hash")

    def test_a_writer_waits_for_its_turn(self):
        store = self.open()
        writer = sqlite3.connect(self.info, isolation_level=None, check_same_thread=False)
        self.addCleanup(writer.close)
        writer.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.2, writer.execute, ["COMMIT"])
        timer.start()
        self.addCleanup(timer.join)
        self.assertTrue(store.add("bob", "hash"))

    def test_a_writer_that_waits_too_long_is_told_and_others_go_on(self):
        self.patch(sqlite, "BUSY_TIMEOUT", 0.05)
        store = self.open()
        store.add("bob", "hash")
        writer = sqlite3.connect(self.info, isolation_level=None)
        self.addCleanup(writer.close)
        writer.execute("BEGIN IMMEDIATE")
        with capturedLogs() as events:
            self.assertRaises(Unavailable, store.add, "ann", "hash")
        self.assertIn("locked", formatEvent(events[0]))
        self.assertEqual(store.find("bob"), "hash")
        writer.execute("COMMIT")
        self.assertTrue(store.add("ann", "hash"))

    def test_a_file_that_is_no_database_is_unavailable(self):
        with open(self.info, "w") as file:
            file.write("something else, longer than a header " * 100)
        with capturedLogs() as events:
            store = self.open()
            self.assertRaises(Unavailable, store.find, "bob")
        self.assertEqual(events[0]["log_level"], LogLevel.error)
        self.assertIn("not a database", formatEvent(events[0]))


class PostgresqlStoreTests(OnPostgresql, StoreTests, SynchronousTestCase):
    def test_a_worker_holds_few_connections(self):
        store = self.open(threads=120)
        support.in_threads(40, lambda n: store.find("bob"))
        name = make_url(self.info).database
        ((held,),) = self.server.execute(
            f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        self.assertLessEqual(held, 10)

    def test_idle_connections_that_were_cut_are_replaced_unnoticed(self):
        store = self.open()
        store.add("bob", "hash")
        support.in_threads(8, lambda n: store.find("bob"))
        name = make_url(self.info).database
        self.server.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        results = support.in_threads(8, lambda n: store.find("bob"))
        self.assertEqual(results, ["hash"] * 8)

    def test_a_transaction_whose_connection_is_cut_is_done_again(self):
        store = self.open()
        cut = []

        def cut_once(connection, cursor, statement, *rest) -> None:
            if statement.startswith("INSERT") and not cut:
                cut.append(connection.connection.driver_connection.info.backend_pid)
                self.server.execute(f"SELECT pg_terminate_backend({cut[0]}, 5000)")

        event.listen(store._database.engine, "before_cursor_execute", cut_once)
        with capturedLogs() as events:
            self.assertTrue(store.add("bob", "hash"))
        self.assertEqual((len(cut), events), (1, []))

    def test_another_encoding_than_utf8_is_a_config_error(self):
        self.server.execute(
            "CREATE DATABASE ccserver_test_latin1 ENCODING 'LATIN1' TEMPLATE template0"
            " LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        self.info = self.info.rpartition("/")[0] + "/ccserver_test_latin1"
        self.addCleanup(self.server.drop, self.info)
        with capturedLogs():
            error = self.assertRaises(ConfigError, self.open)
        self.assertIn("LATIN1", str(error))

    def test_a_list_names_the_same_database_as_a_url(self):
        url = make_url(self.info)
        self.open().add("bob", "hash")
        parts = [url.host, str(url.port), url.username, url.password or "", url.database]
        self.info = ";".join(parts)
        self.assertEqual(self.open().find("bob"), "hash")

    def test_connections_that_are_all_busy_are_no_outage(self):
        self.patch(postgresql, "POOL_TIMEOUT", 0.05)
        store = self.open(threads=1)
        store.add("bob", "hash")
        with capturedLogs() as events:
            with store._database.engine.connect():
                self.assertRaises(Unavailable, store.find, "bob")
                self.assertRaises(Unavailable, store.find, "bob")
            self.assertEqual(store.find("bob"), "hash")
        self.assertTrue(store._is_prepared)
        (line,) = map(formatEvent, events)
        self.assertIn("fails: all connections are busy: QueuePool limit of size 1", line)

    def test_a_frozen_server_does_not_hold_threads_for_long(self):
        self.patch(postgresql, "ANSWER_TIMEOUT", 0.3)
        support.quick_retry(self)
        self.info += "?connect_timeout=2"
        store = self.open()
        store.add("bob", "hash")
        self.server.freeze()
        thaw = threading.Timer(support.PATIENCE, self.server.thaw)
        thaw.start()
        try:
            with capturedLogs() as events, Stopwatch() as watch:
                results = support.in_threads(20, lambda n: store.find("bob"))
        finally:
            thaw.cancel()
            self.server.thaw()
        self.assertLess(watch.seconds, 6)
        self.assertEqual({type(result) for result in results}, {Unavailable})
        self.assertEqual([event["log_level"] for event in events], [LogLevel.error])
        support.wait_until(lambda: _found(store, "bob") == "hash")


def _added(store: Store, name: str) -> bool:
    try:
        return store.add(name, "hash")
    except Unavailable:
        return False


def _found(store: Store, name: str) -> str | None:
    try:
        return store.find(name)
    except Unavailable:
        return None


class AwayTests:
    """What clients and the log see while the database is away, on both."""

    def lines(self, events, level) -> list[str]:
        return [formatEvent(event) for event in events if event["log_level"] is level]

    def test_away_and_back(self):
        support.quick_retry(self)
        support.open_accounts(self, self.folder, self.info)
        register(b"bob", b"secret")
        with capturedLogs() as events:
            self.take_away()
            for _ in range(20):
                self.assertEqual(login(b"bob", b"secret"), UNAVAILABLE)
                self.assertEqual(login(b"nobody", b"secret"), UNAVAILABLE)
                self.assertEqual(register(b"ann", b"secret"), registered(3, b"ann"))
            self.bring_back()
            support.wait_until(lambda: login(b"bob", b"secret") == logged_in(b"bob"))
            self.assertEqual(login(b"bob", b"wrong"), ZEROS)
            self.assertEqual(register(b"ann", b"secret"), registered(0, b"ann"))
        self.assertEqual(len(self.lines(events, LogLevel.error)), 1)
        (back,) = self.lines(events, LogLevel.info)
        self.assertIn("is back after", back)

    def test_a_name_that_cannot_be_is_not_acceptable_even_then(self):
        support.open_accounts(self, self.folder, self.info)
        self.take_away()
        with capturedLogs():
            self.assertEqual(register(b"\xff", b"secret"), registered(2, b"\xff"))
        self.bring_back()

    def test_a_worker_starts_while_it_is_away(self):
        support.quick_retry(self)
        self.take_away()
        with capturedLogs() as events:
            support.open_accounts(self, self.folder, self.info)
            self.assertEqual(login(b"bob", b"secret"), UNAVAILABLE)
            self.bring_back()
            support.wait_until(lambda: register(b"bob", b"secret") == registered(0, b"bob"))
        self.assertEqual(len(self.lines(events, LogLevel.error)), 1)

    def test_many_threads_are_refused_quickly(self):
        support.open_accounts(self, self.folder, self.info)
        self.take_away()
        with capturedLogs() as events, Stopwatch() as watch:
            replies = support.in_threads(60, lambda n: login(b"bob", b"secret"))
        self.assertEqual(set(replies), {UNAVAILABLE})
        self.assertLess(watch.seconds, 3)
        self.assertEqual(len(self.lines(events, LogLevel.error)), 1)
        self.bring_back()


class SqliteAwayTests(OnSqlite, AwayTests, SynchronousTestCase):
    """Away is a folder that is not there."""

    def setUp(self) -> None:
        super().setUp()
        self.info = os.path.join(self.folder, "data", "accounts.db")
        os.mkdir(os.path.dirname(self.info))

    def take_away(self) -> None:
        if "registrar" in handlers.app.state:
            handlers.close_accounts(support.worker(self.folder))
        os.rename(os.path.dirname(self.info), self.folder + "/elsewhere")

    def bring_back(self) -> None:
        os.rename(self.folder + "/elsewhere", os.path.dirname(self.info))


class PostgresqlAwayTests(OnPostgresql, AwayTests, SynchronousTestCase):
    """Away is a server that was stopped."""

    def take_away(self) -> None:
        self.server.stop()

    def bring_back(self) -> None:
        self.server.start()

    def test_a_restart_between_two_requests_is_not_noticed(self):
        support.open_accounts(self, self.folder, self.info)
        register(b"bob", b"secret")
        self.server.stop()
        self.server.start()
        with capturedLogs() as events:
            replies = support.in_threads(8, lambda n: login(b"bob", b"secret"))
        self.assertEqual(set(replies), {logged_in(b"bob")})
        self.assertEqual(self.lines(events, LogLevel.error), [])
