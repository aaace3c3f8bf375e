"""The rules of names and passwords."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import tests.properties  # noqa: F401
from ccserver.accounts.messages import Result
from ccserver.accounts.registrar import Registrar, is_name, is_password

BAD = ["", " ", "\t", "a\0b", "a\nb", "\x7f", "\x85", "\x1b[31m", "a\udcffb", "\ud800"]
BAD += ["a\u2028b", "a\u2029b", "x" * 60_000, "\n" * 60_000]


class EmptyStore:
    """A store without accounts, which remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find(self, name: str) -> str | None:
        self.asked.append(name)
        return NOBODYS if name == "" else None


class NotedPasswords:
    """Hashes nothing, and remembers what was to be hashed."""

    def __init__(self) -> None:
        self.hashed: list[str] = []

    def verify(self, stored: str | None, password: str) -> bool:
        self.hashed.append(password)
        return stored is not None

    def hash(self, password: str) -> str:
        self.hashed.append(password)
        return ""


NOBODYS = "a hash that somebody has put beside an empty name"


class BoundTests(SynchronousTestCase):
    """What an account cannot have is neither hashed nor looked for."""

    def setUp(self) -> None:
        self.store, self.passwords = EmptyStore(), NotedPasswords()
        self.registrar = Registrar(self.store, self.passwords)

    def test_a_login_with_it_does_the_usual_work_for_nothing(self):
        for bad in BAD:
            self.assertFalse(self.registrar.login(bad, "secret"), repr(bad[:20]))
            self.assertFalse(self.registrar.login("bob", bad), repr(bad[:20]))
        self.assertEqual(set(self.store.asked), {""})
        self.assertEqual(self.passwords.hashed, [""] * 2 * len(BAD))

    def test_a_registration_of_it_does_nothing(self):
        for bad in BAD:
            for credentials in ((bad, "secret"), ("bob", bad)):
                self.assertEqual(self.registrar.register(*credentials), Result.NOT_ACCEPTABLE)
        self.assertEqual((self.store.asked, self.passwords.hashed), ([], []))


class RuleTests(SynchronousTestCase):
    def test_usual_names(self):
        for name in ("a", "Bob", "张三", "a b", "x" * 55, "' OR 1=1 --", "é" * 27):
            self.assertTrue(is_name(name), name)

    def test_names_that_are_refused(self):
        for name in (*BAD, "x" * 56, "é" * 28, " a", "a ", "\u3000a", "a\u00a0"):
            self.assertFalse(is_name(name), repr(name))

    def test_what_cannot_be_seen_is_in_no_name(self):
        hidden = (
            "\u200b\u200d\u200e\u202e\u2066\ufeff\xad\u00a0\u2003\u3000\u3164\u2800\u115f\uffa0"
        )
        for char in hidden:
            for name in (char, f"an{char}n"):
                self.assertFalse(is_name(name), repr(name))
            self.assertTrue(is_password(f"an{char}n"), repr(char))
        for name in ("an n", "e\u0301", "\u2764\ufe0f", "\u0939\u093f\u0928\u094d\u0926\u0940"):
            self.assertTrue(is_name(name), name)

    def test_usual_passwords(self):
        for password in ("a", "密码", " a ", "x" * 39):
            self.assertTrue(is_password(password), password)

    def test_passwords_that_are_refused(self):
        for password in (*BAD, "x" * 40, "é" * 20, "\u3000"):
            self.assertFalse(is_password(password), repr(password))

    @given(st.text(st.characters(), max_size=60))
    def test_what_is_accepted_fits_its_field(self, text):
        if is_name(text):
            self.assertLessEqual(len(text.encode()), 55)
        if is_password(text):
            self.assertLessEqual(len(text.encode()), 39)
