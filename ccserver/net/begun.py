"""Calls of handlers by the compiled part, and those it has begun and others go on with."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ccserver.native import native

answer: Callable[..., Any] | None = native.answer if native else None
"""Does what a runner or a thread does for packets, as far as nothing unusual comes up."""

_NOT_AGAIN = object()


class Begun:
    """The call of a handler that the compiled part has begun: C{yield from} it, once."""

    __slots__ = ("_coroutine", "_value")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], value: Any) -> None:
        """@param coroutine: waits for C{value}."""
        self._coroutine = coroutine
        self._value = value

    def __iter__(self) -> Begun:
        return self

    def __next__(self) -> Any:
        value, self._value = self._value, _NOT_AGAIN
        return self._coroutine.send(None) if value is _NOT_AGAIN else value

    def throw(self, error: BaseException, *more: Any) -> Any:
        """Let the awaited have failed, or the coroutine end."""
        return self._coroutine.throw(error, *more)

    def close(self) -> None:
        """Let the coroutine end."""
        self._coroutine.close()
