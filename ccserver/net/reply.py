"""Replies: what a handler may return, as bytes, and how many of them are joined."""

from __future__ import annotations

from typing import Any

from ccserver.message import Message

OUTPUT_MARK = 65536
"""Bytes of replies that a lane joins before it hands them on and looks whether to go on."""

LONG_MARK = 5 * OUTPUT_MARK
"""The same for packets of a long read: replies as long as these are joined, too."""


def reply_body(reply: Any) -> bytes | None:
    """What a handler returned, as bytes.

    @raise TypeError: it is neither bytes nor a L{Message} nor None.
    """
    if reply is None or isinstance(reply, bytes):
        return reply
    if isinstance(reply, Message):
        return reply.encode()
    if isinstance(reply, bytearray | memoryview):
        return bytes(reply)
    raise TypeError(f"a reply is bytes, a Message or None, not {type(reply).__name__}")
