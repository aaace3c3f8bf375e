"""C{ccserver call}: send one message and show what comes back."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from types import NoneType
from typing import Any, NamedTuple, get_args

import click

from ccserver.app import CODES, App, Handler
from ccserver.client import Client
from ccserver.errors import CcserverError
from ccserver.loading import load_app
from ccserver.message import Message

DEFAULT_PORT = 5678
DEFAULT_APP = "ccserver.accounts:app"


class Target(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


class TargetType(click.ParamType[Target]):
    """C{HOST}, C{HOST:PORT}, C{[::1]:PORT} or a bare IPv6 address."""

    name = "HOST[:PORT]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Target:
        if isinstance(value, Target):
            return value
        host, port = _split(str(value))
        if not host or host.isdigit() or not _is_port(port):
            self.fail(f"{value!r} is not HOST or HOST:PORT, such as [::1]:5678", param, ctx)
        return Target(host, int(port))


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return "", ""
        return host, rest[1:] if rest else str(DEFAULT_PORT)
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, str(DEFAULT_PORT)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535


class HexType(click.ParamType[bytes]):
    """Bytes as pairs of hexadecimal digits, with or without blanks."""

    name = "HEX"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        try:
            return value if isinstance(value, bytes) else bytes.fromhex(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of bytes such as 00ff", param, ctx)


@dataclass(frozen=True)
class Question:
    """What is to be sent, and how its answer is to be read."""

    code: int
    name: str
    body: bytes | Message
    reply: type[Message] | None = None
    as_text: bool = False


@click.command(
    short_help="Send one message and show the answer.",
    epilog="A field given as NAME=- is asked for without echo, or read as a line of standard "
    "input: use it for passwords, which the list of processes shows otherwise.",
)
@click.argument("target", type=TargetType())
@click.argument("message")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--hex", "raw", type=HexType(), help="The body, instead of fields.")
@click.option("--text", metavar="TEXT", help="The body as UTF-8, instead of fields.")
@click.option(
    "--app",
    "app_name",
    default=DEFAULT_APP,
    show_default=True,
    metavar="MODULE:NAME",
    help="The application whose messages these are; the current folder is searched too.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait for the connection, and for the answer.",
)
@click.option("--no-reply", is_flag=True, help="Only send: the message has no answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def call(
    target: Target,
    message: str,
    fields: Sequence[str],
    raw: bytes | None,
    text: str | None,
    app_name: str,
    timeout: float,
    no_reply: bool,
    as_json: bool,
) -> None:
    """Send MESSAGE to the server at TARGET and print its answer.

    MESSAGE is a name of the application, or a message code. With --hex or --text, the body is
    sent as given, and for a code the application is not needed. The exit status is 0 if there was
    an answer, whatever it says.
    """
    try:
        question = _question(message, fields, raw, text, app_name)
        if no_reply:
            _send(target, question, timeout)
            return
        reply, seconds = _ask(target, question, timeout)
    except (CcserverError, ValueError) as error:
        raise click.ClickException(_printable(f"{message}: {error}")) from error
    shown = _as_json if as_json else _as_lines
    click.echo(shown(question, reply, seconds))


def _question(
    message: str, fields: Sequence[str], raw: bytes | None, text: str | None, app_name: str
) -> Question:
    if [bool(fields), raw is not None, text is not None].count(True) > 1:
        raise click.UsageError("give fields, --hex or --text, but one of them only")
    given = text.encode("utf-8", "surrogateescape") if text is not None else raw
    code = int(message) if message.isascii() and message.isdigit() else None
    if code is not None and code not in CODES:
        raise ValueError(f"codes go from 0 to {CODES[-1]}")
    if code is not None and given is not None:
        return Question(code, message, given, as_text=text is not None)
    app = load_app(app_name, [os.getcwd()])
    handler = _handler(app, code, message)
    if handler is not None:
        body = _body(handler, fields) if given is None else given
        return Question(handler.code, handler.name, body, _reply_type(handler), text is not None)
    if code is None or fields:
        raise ValueError(f"not a message of {app_name}; it has {_known(app)}")
    return Question(code, message, b"")


def _handler(app: App, code: int | None, name: str) -> Handler | None:
    """The handler of a code, or where that is None, of a name."""
    if code is not None:
        return app.handlers.get(code)
    return next((h for h in app.handlers.values() if h.name == name), None)


def _known(app: App) -> str:
    """The messages and their fields, on one line."""
    handlers = [app.handlers[code] for code in sorted(app.handlers)]
    return ", ".join(f"{h.name} ({_fields_of(h)})" for h in handlers) or "none"


def _fields_of(handler: Handler) -> str:
    if issubclass(handler.request, Message):
        return " ".join(handler.request.fields()) or "no fields"
    return "no body" if handler.request is NoneType else "bytes"


def _body(handler: Handler, fields: Sequence[str]) -> bytes | Message:
    if issubclass(handler.request, Message):
        return handler.request.parse(_values(handler.request, fields))
    if fields:
        raise ValueError(f"it has no fields; its body: {_fields_of(handler)}")
    return b""


def _values(request: type[Message], fields: Sequence[str]) -> dict[str, str]:
    """Texts by field; those given as C{-} are asked for, after all others proved right."""
    values: dict[str, str] = {}
    for given in fields:
        name, equals, value = given.partition("=")
        if not equals:
            raise ValueError(f"{given!r} is not FIELD=VALUE")
        if name in values:
            raise ValueError(f"{name} is given twice")
        values[name] = value
    hidden = [name for name, value in values.items() if value == "-" and name in request.fields()]
    request.parse({name: value for name, value in values.items() if name not in hidden})
    return {**values, **{name: _secret(name) for name in hidden}}


def is_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty()


def _secret(name: str) -> str:
    if is_terminal():
        return str(click.prompt(name, hide_input=True, default="", show_default=False, err=True))
    line = sys.stdin.readline()
    if not line:
        raise ValueError(f"standard input has no line for {name}=-")
    return line.rstrip("\r\n")


def _reply_type(handler: Handler) -> type[Message] | None:
    """The L{Message} that a handler returns, among whatever else; None: take it as bytes."""
    for found in (handler.reply, *get_args(handler.reply)):
        if isinstance(found, type) and issubclass(found, Message):
            return found
    return None


def _ask(target: Target, question: Question, timeout: float) -> tuple[bytes | Message, float]:
    """The answer, and the seconds it took."""
    with Client(target.host, target.port, timeout) as client:
        began = perf_counter()
        reply = client.request(question.code, question.body)
        seconds = perf_counter() - began
    if question.reply is None:
        return reply, seconds
    return question.reply.decode(reply), seconds


def _send(target: Target, question: Question, timeout: float) -> None:
    with Client(target.host, target.port, timeout) as client:
        client.send(question.code, question.body)


def _as_lines(question: Question, reply: bytes | Message, seconds: float) -> str:
    size = len(reply.encode() if isinstance(reply, Message) else reply)
    length = f"{size} byte{'s' if size > 1 else ''}" if size else "no body"
    says = _says(reply)
    head = f"{question.name}: answered, {length}, {seconds * 1000:.1f} ms"
    if says is not None:
        head += f": {_printable(says)}"
    return "\n".join([head, *(f"  {line}" for line in _details(question, reply))])


def _says(reply: bytes | Message) -> str | None:
    """What the answer means, if its class can say so: with a C{__str__} of its own."""
    has_words = isinstance(reply, Message) and type(reply).__str__ is not object.__str__
    return str(reply) if has_words else None


def _details(question: Question, reply: bytes | Message) -> list[str]:
    if isinstance(reply, Message):
        return [f"{name} = {_shown(getattr(reply, name))}" for name in reply.fields()]
    if question.as_text:
        return [_printable(line) for line in reply.decode("utf-8", "replace").splitlines()]
    return _hex_dump(reply)


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex() if any(value) or not value else f"{len(value)} zero bytes"
    return repr(value)


def _hex_dump(data: bytes) -> list[str]:
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{start:04x}  {row.hex(' '):<47}  {shown}")
    return lines


def _as_json(question: Question, reply: bytes | Message, seconds: float) -> str:
    told: dict[str, Any] = {
        "code": question.code,
        "name": question.name,
        "seconds": round(seconds, 6),
    }
    says = _says(reply)
    if says is not None:
        told["says"] = says
    if isinstance(reply, Message):
        told["fields"] = {name: _plain(getattr(reply, name)) for name in reply.fields()}
    elif question.as_text:
        told["text"] = reply.decode("utf-8", "replace")
    else:
        told["hex"] = reply.hex()
    return json.dumps(told)


def _plain(value: Any) -> Any:
    """C{value} as JSON can hold it: bytes as hexadecimal digits, NaN and infinity as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _printable(text: str) -> str:
    """C{text} on one line and without what would steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
