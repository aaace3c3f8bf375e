"""Registrar: the rules by which accounts are made and recognised."""

from __future__ import annotations

import unicodedata
from contextlib import suppress

from ccserver.accounts.messages import NAME_SIZE, PASSWORD_SIZE, Result
from ccserver.accounts.passwords import Passwords
from ccserver.accounts.store import Store, Unavailable

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
_INVISIBLE = ("Cf", "Zs")
_EMPTY_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
"""What shows nothing though it is a letter or a symbol: fillers of Hangul, Braille without dots."""


class Registrar:
    """Makes accounts and recognises their owners; from any thread.

    Both requests raise L{Unavailable} while the database is away.
    """

    def __init__(self, store: Store, passwords: Passwords) -> None:
        self._store = store
        self._passwords = passwords

    def register(self, name: str, password: str) -> Result:
        """Make an account, unless the name is taken: exactly one of two rivals is told DONE."""
        if not (is_name(name) and is_password(password)):
            return Result.NOT_ACCEPTABLE
        if self._store.find(name) is not None:
            return Result.NAME_TAKEN
        added = self._store.add(name, self._passwords.hash(password))
        return Result.DONE if added else Result.NAME_TAKEN

    def login(self, name: str, password: str) -> bool:
        """Whether C{password} is that of the account C{name}.

        As much work for a name that has no account, and for what can be none or have none.
        """
        is_possible = is_name(name) and is_password(password)
        if not is_possible:
            name = password = ""  # nothing long is hashed, nothing odd gets to the database
        stored = self._store.find(name)
        if not self._passwords.verify(stored, password) or stored is None or not is_possible:
            return False
        if self._passwords.is_outdated(stored):
            with suppress(Unavailable):
                self._store.replace(name, stored, self._passwords.hash(password))
        return True

    def close(self) -> None:
        """Close the connections to the database; a straggler opens a new one."""
        self._store.close()


def is_name(text: str) -> bool:
    """Whether an account may be called so: without blanks around it, and all of it can be seen."""
    return _is_text(text, NAME_SIZE) and text == text.strip() and not any(map(_is_unseen, text))


def is_password(text: str) -> bool:
    """Whether an account may have this password."""
    return _is_text(text, PASSWORD_SIZE) and not text.isspace()


def _is_unseen(char: str) -> bool:
    return char != " " and (unicodedata.category(char) in _INVISIBLE or char in _EMPTY_LETTERS)


def _is_text(text: str, size: int) -> bool:
    """Whether it has 1 to C{size - 1} bytes of UTF-8, none of them a control character's.

    What ends a line or a paragraph counts as one.
    """
    if not 0 < len(text) < size:
        return False
    if any(unicodedata.category(char) in _CONTROLS for char in text):
        return False
    return len(text.encode()) < size
