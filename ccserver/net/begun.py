"""A call that the compiled part has begun, for those who go on with it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

_NOT_AGAIN = object()


class Begun:
    """The call of a handler that the compiled part has begun: C{yield from} it, once."""

    __slots__ = ("_coroutine", "_value")

    def __init__(self, coroutine: Coroutine[Any, Any, Any] | None, value: Any) -> None:
        """@param coroutine: waits for C{value}; None: the handler has raised C{value}."""
        self._coroutine = coroutine
        self._value = value

    def __iter__(self) -> Begun:
        return self

    def __next__(self) -> Any:
        value, self._value = self._value, _NOT_AGAIN
        if self._coroutine is None:
            raise value
        return self._coroutine.send(None) if value is _NOT_AGAIN else value

    def throw(self, error: BaseException, *more: Any) -> Any:
        """Let the awaited have failed, or the coroutine end."""
        assert self._coroutine is not None
        return self._coroutine.throw(error, *more)

    def close(self) -> None:
        """Let the coroutine end."""
        if self._coroutine is not None:
            self._coroutine.close()
