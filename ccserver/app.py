"""App: what a user of ccserver writes, handlers by message code and hooks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

from ccserver.errors import AppError, BadBody
from ccserver.message import Message

if TYPE_CHECKING:
    from ccserver.config import Config

F = TypeVar("F", bound=Callable[..., Any])

CODES = range(0x10000)
"""The message codes there are: msgCode is 16 bits wide, unsigned (PROTOCOL.md 1)."""


@dataclass(frozen=True, slots=True)
class Handler:
    """What is called for one message code.

    @ivar code: the message code.
    @ivar name: what the message is called, on the command line too.
    @ivar function: takes the session and the decoded body, returns the reply.
    @ivar in_thread: a C{def}, called in the thread pool; else an C{async def}, on the reactor.
    @ivar decode: body to request, raising L{BadBody}; None hands the bytes over as they are.
    @ivar request: the request's type: bytes, a L{Message} or None.
    @ivar reply: the reply's type as annotated.
    """

    code: int
    name: str
    function: Callable[[Any, Any], Any]
    in_thread: bool
    decode: Callable[[bytes], Any] | None
    request: type
    reply: Any

    @property
    def title(self) -> str:
        """What it is called in the log; hooks have codes that no packet can have."""
        return f"handler {self.name} of code {self.code}" if self.code >= 0 else f"hook {self.name}"


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that an application runs in, as its start and stop hooks see it.

    @ivar slot: the number of the worker, from 0.
    @ivar config: the configuration in force, with the application's own keys.
    """

    slot: int
    config: Config


class App:
    """Handlers by message code, and hooks.

    @ivar state: the application's own values in this process, by name.
    @ivar handlers: by message code; changed by L{message} alone.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.handlers: dict[int, Handler] = {}
        self.worker_start: list[Callable[[Worker], Any]] = []
        self.worker_stop: list[Callable[[Worker], Any]] = []
        self.connection_made: list[Callable[[Any], Any]] = []
        self.connection_lost: list[Callable[[Any, str], Any]] = []
        self.connection_handover: list[Callable[[Any], Any]] = []
        self.connection_adopt: list[Callable[[Any], Any]] = []

    def message(self, code: int, name: str | None = None) -> Callable[[F], F]:
        """Register the decorated function as the handler of C{code}.

        A C{def} runs in the thread pool and may block; an C{async def} runs on the reactor,
        may await Deferreds, and must not block. Both are called with the L{Session} and the
        request, whose annotation says how the body is decoded: C{bytes}, a L{Message}, or None
        (the body must be empty). What is returned, bytes or a L{Message}, is sent under the
        same code; None sends nothing.

        @param name: the message's name; the function's, if it is not given.
        @raise AppError: the code is taken or not one, or the function can't be a handler.
        """

        def register(function: F) -> F:
            handler = _handler(code, name or _name(function), function)
            taken = self.handlers.get(code)
            if taken is not None:
                raise AppError(
                    f"message code {code} has two handlers: {taken.name} and {handler.name}"
                )
            self.handlers[code] = handler
            return function

        return register

    def on_worker_start(self, hook: F) -> F:
        """Call C{hook(worker)} before the worker accepts a connection; it raises: no start.

        A C{def} runs in a thread, an C{async def} on the reactor; so for all hooks.
        """
        self.worker_start.append(hook)
        return hook

    def on_worker_stop(self, hook: F) -> F:
        """Call C{hook(worker)} when the last connection of a stopping worker is gone."""
        self.worker_stop.append(hook)
        return hook

    def on_connection_made(self, hook: F) -> F:
        """Call C{hook(session)} before the connection's first packet is handled."""
        self.connection_made.append(hook)
        return hook

    def on_connection_lost(self, hook: F) -> F:
        """Call C{hook(session, reason)} when the connection's last packet has been handled."""
        self.connection_lost.append(hook)
        return hook

    def on_handover(self, hook: F) -> F:
        """Call C{hook(session)} before the connection moves to another worker process.

        What it leaves in C{session.state} moves along, if it is plain. It returns False, or
        raises: the connection stays. It may stay for other reasons too, and goes on here then.
        """
        self.connection_handover.append(hook)
        return hook

    def on_adopt(self, hook: F) -> F:
        """Call C{hook(session)} where a connection has moved to, before its next packet."""
        self.connection_adopt.append(hook)
        return hook


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether calling C{function} makes a coroutine; callable objects are looked into."""
    call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _handler(code: int, name: str, function: Callable[..., Any]) -> Handler:
    where = f"handler {name} of message code {code}"
    if not isinstance(code, int) or code not in CODES:
        raise AppError(f"{where}: a code is a number from 0 to {CODES[-1]}")
    try:
        signature = inspect.signature(function)
        signature.bind(None, None)
        _, parameter, *_ = signature.parameters.values()
    except (TypeError, ValueError):
        raise AppError(f"{where}: it must take a session and a request") from None
    if parameter.annotation is parameter.empty:
        raise AppError(f"{where}: annotate {parameter.name} with bytes, a Message or None")
    request = _resolved(parameter.annotation, function, where)
    decode: Callable[[bytes], Any] | None
    if request is None or request is NoneType:
        request, decode = NoneType, _nothing
    elif request is bytes:
        decode = None
    elif isinstance(request, type) and issubclass(request, Message):
        decode = request.decode
    else:
        raise AppError(f"{where}: {request!r} is neither bytes nor a Message nor None")
    reply = signature.return_annotation
    reply = None if reply is signature.empty else _resolved(reply, function, where)
    return Handler(
        code, name, function, not is_coroutine_function(function), decode, request, reply
    )


def _resolved(annotation: Any, function: Callable[..., Any], where: str) -> Any:
    """The object that C{annotation} names: itself, unless annotations are kept as text."""
    if not isinstance(annotation, str):
        return annotation
    inner = _innermost(function)
    try:
        scope = {**inner.__globals__, **inspect.getclosurevars(inner).nonlocals}
        return eval(annotation, scope)
    except Exception as error:
        raise AppError(f"{where}: the annotation {annotation!r} means nothing: {error}") from None


def _innermost(function: Any) -> Any:
    """The Python function that a call of C{function} ends in."""
    while not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.ismethod(function):
            function = function.__func__
        elif inspect.isfunction(type(function).__call__):
            function = type(function).__call__
        else:
            break
    return function


def _nothing(body: bytes) -> None:
    if body:
        raise BadBody(f"{len(body)} bytes, the message has none")
