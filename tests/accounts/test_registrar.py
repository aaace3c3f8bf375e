"""The rules of names and passwords."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.accounts.registrar import is_name, is_password

BAD = ["", " ", "\t", "a\0b", "a\nb", "\x7f", "\x85", "\x1b[31m", "a\udcffb", "\ud800"]


class RuleTests(SynchronousTestCase):
    def test_usual_names(self):
        for name in ("a", "Bob", "张三", "a b", "x" * 55, "' OR 1=1 --", "é" * 27):
            self.assertTrue(is_name(name), name)

    def test_names_that_are_refused(self):
        for name in (*BAD, "x" * 56, "é" * 28, " a", "a ", "\u3000a", "a\u00a0"):
            self.assertFalse(is_name(name), repr(name))

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
