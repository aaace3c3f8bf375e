"""The bodies of register and login and of their replies (PROTOCOL.md 3)."""

from __future__ import annotations

from enum import IntEnum

from ccserver import Message, field

NAME_SIZE = 56
PASSWORD_SIZE = 40


class Result(IntEnum):
    """What a reply says of its request."""

    DONE = 0
    NAME_TAKEN = 1
    NOT_ACCEPTABLE = 2
    UNAVAILABLE = 3


TOLD = {
    Result.DONE: "done",
    Result.NAME_TAKEN: "refused: the name is taken",
    Result.NOT_ACCEPTABLE: "refused: the name or the password is not acceptable",
    Result.UNAVAILABLE: "refused for now: try again later",
}
"""What C{ccserver call} says of a result."""


class Register(Message):
    """100 bytes. C{type} is the client's own and has no meaning here.

    Text that is not UTF-8 is let through, so that it gets an answer.
    """

    type: int = field.i32()
    username: str = field.chars(NAME_SIZE, errors="surrogateescape")
    password: str = field.chars(PASSWORD_SIZE, errors="surrogateescape", secret=True)


class RegisterReply(Message):
    """100 bytes: the name as it came, and zeros where the password was."""

    result: int = field.i32()
    username: str = field.chars(NAME_SIZE, errors="surrogateescape")
    password: bytes = field.raw(PASSWORD_SIZE)

    def __str__(self) -> str:
        return _told(self.result)


class Login(Message):
    """96 bytes."""

    username: str = field.chars(NAME_SIZE, errors="surrogateescape")
    password: str = field.chars(PASSWORD_SIZE, errors="surrogateescape", secret=True)


class LoginReply(Message):
    """96 bytes: the name after a success; all zeros after a failure.

    C{result} stands in the first bytes of what was the password, which old clients ignore: 0,
    after a failure too, or L{Result.UNAVAILABLE}.
    """

    username: str = field.chars(NAME_SIZE)
    result: int = field.u32()
    reserved: bytes = field.raw(PASSWORD_SIZE - 4)

    def __str__(self) -> str:
        if not self.username and self.result == Result.DONE:
            return "refused: the name or the password is wrong"
        return _told(self.result)


def _told(result: int) -> str:
    return TOLD[Result(result)] if result in list(Result) else f"result {result}"
