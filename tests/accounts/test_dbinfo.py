"""DBInfo: which database each form names, and what is refused."""

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL
from twisted.trial.unittest import SynchronousTestCase

import tests.properties  # noqa: F401
from ccserver.accounts.dbinfo import database_url, names_no_database
from ccserver.errors import ConfigError

LOG = "/srv/logs/error.log"


class FormTests(SynchronousTestCase):
    def assert_file(self, info: str, path: str) -> None:
        self.assertEqual(database_url(info, LOG), URL.create("sqlite", database=path))

    def assert_refused(self, info: str, text: str) -> None:
        error = self.assertRaises(ConfigError, database_url, info, LOG)
        self.assertIn(text, str(error))
        self.assertNotIn("secret", str(error))

    def test_nothing_is_a_file_beside_the_log(self):
        self.assert_file("", "/srv/logs/ccserver.db")

    def test_a_host_alone_is_the_same_file(self):
        for info in ("127.0.0.1", "localhost", "::1", "db.example.com", "db-1"):
            self.assert_file(info, "/srv/logs/ccserver.db")
            self.assertTrue(names_no_database(info))

    def test_only_a_host_alone_names_no_database(self):
        for info in ("", "a.db", "./a", "sqlite:///a", "h;1;u;p;d", "127.0.0.1:3306", "a b"):
            self.assertFalse(names_no_database(info), info)

    def test_a_path_is_a_file(self):
        self.assert_file("/var/lib/a.db", "/var/lib/a.db")
        self.assert_file("data/accounts", "/srv/logs/data/accounts")
        self.assert_file("../a", "/srv/a")
        for name in ("a.db", "a.sqlite", "a.sqlite3", "a b;c.db".replace(";", "")):
            self.assert_file(name, "/srv/logs/" + name)

    def test_a_sqlite_url_is_a_file(self):
        self.assert_file("sqlite:////var/lib/a.db", "/var/lib/a.db")
        self.assert_file("sqlite:///a.db", "/srv/logs/a.db")
        self.assert_file("sqlite+pysqlite:///a", "/srv/logs/a")

    def test_a_list_is_a_postgresql_database(self):
        url = URL.create("postgresql+psycopg", "user", "secret", "db.example", 5433, "game")
        self.assertEqual(database_url("db.example;5433;user;secret;game", LOG), url)

    def test_a_password_in_a_list_needs_no_quoting(self):
        for password in ("a;b", ";", "a@b/c?d#e%20", " blank ", ""):
            url = database_url(f"h;5432;u;{password};d", LOG)
            self.assertEqual((url.password, url.database, url.host), (password, "d", "h"))

    def test_a_postgresql_url_uses_psycopg(self):
        for scheme in ("postgresql", "postgres", "postgresql+psycopg"):
            url = database_url(f"{scheme}://u:p@h:5433/d?sslmode=require", LOG)
            self.assertEqual(url.drivername, "postgresql+psycopg")
            self.assertEqual((url.port, url.query["sslmode"]), (5433, "require"))

    def test_other_databases_are_refused(self):
        for info in ("mysql://u:secret@h/d", "postgresql+asyncpg://u:secret@h/d", "x://secret"):
            self.assert_refused(info, "not supported; allowed: nothing, host;port;user")

    def test_what_is_no_url_is_refused(self):
        for info in ("://secret", "postgresql://u:secret@h:port/d"):
            self.assert_refused(info, "DBInfo is not a URL")

    def test_a_password_that_is_torn_by_a_mark_of_its_own_is_refused(self):
        for info in ("postgresql://u:sec@secret@h/d", "postgresql://u:@secret@h:1/d"):
            self.assert_refused(info, "written as %40")
        url = database_url("postgresql://u:sec%40secret@h/d", LOG)
        self.assertEqual((url.password, url.host), ("sec@secret", "h"))

    def test_sqlite_without_a_file_is_refused(self):
        for info in ("sqlite://", "sqlite:///:memory:", "sqlite://host/a", "sqlite:///a?mode=ro"):
            self.assert_refused(info, "sqlite:///FILE")

    def test_a_list_with_parts_missing_is_refused(self):
        self.assert_refused("h;5432;u;secret", "has 4 parts; allowed: host;port;user;password;")
        for info in (";5432;u;secret;d", "h;5432;;secret;d", "h;5432;u;secret;"):
            self.assert_refused(info, "host, user and database can't be empty")

    def test_a_list_with_a_bad_port_is_refused(self):
        for port in ("", "0", "65536", "x", "-1", "123456"):
            self.assert_refused(f"h;{port};u;secret;d", "number from 1 to 65535")

    def test_anything_else_is_refused(self):
        for info in ("127.0.0.1:3306", "user@host", "a b", "secret!"):
            self.assert_refused(info, "names no database; allowed: nothing, host;port;user;")

    @given(st.text())
    def test_any_text_is_a_database_or_refused(self, info):
        try:
            self.assertIsInstance(database_url(info, LOG), URL)
        except ConfigError:
            pass
