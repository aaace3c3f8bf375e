"""Message: a fixed-layout body as a class, compiled to one C{struct.Struct}."""

from __future__ import annotations

import builtins
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, dataclass_transform

from ccserver.errors import BadBody

_ORDER = {"big": ">", "little": "<"}


@dataclass(frozen=True, slots=True)
class Field:
    """How one attribute of a L{Message} stands in the body.

    @ivar kind: what it is called in documentation and errors, such as C{chars(56)}.
    @ivar format: its C{struct} format, without byte order.
    @ivar size: bytes.
    @ivar default: the value of an attribute that is not given.
    @ivar load: from what C{struct} unpacks to the attribute's value, or None if they are the same.
    @ivar dump: the other way round.
    @ivar parse: the value from text, as written on a command line.
    @ivar count: of an array, how many values C{struct} packs for it; None: a single one.
    @ivar item: of a tail, the field that repeats until the end of the body; None: plain bytes.
    @ivar is_tail: takes the rest of the body; only the last field can.
    @ivar secret: its values are in no C{repr} and no error.
    """

    kind: str
    format: str
    size: int
    default: Any
    parse: Callable[[str], Any]
    load: Callable[[Any], Any] | None = None
    dump: Callable[[Any], Any] | None = None
    count: int | None = None
    item: Field | None = None
    is_tail: bool = False
    secret: bool = False


def _integer(text: str) -> int:
    return int(text, 0)


def _truth(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _number(kind: str, code: str) -> Field:
    return Field(kind, code, struct.calcsize(">" + code), 0, _integer)


class _Fields:
    """The kinds of fields, as the namespace C{field}.

    Each call stands for a value in a class body, so it is typed as L{Any}.
    """

    def i8(self) -> Any:
        """A signed integer of 1 byte."""
        return _number("i8", "b")

    def i16(self) -> Any:
        """A signed integer of 2 bytes."""
        return _number("i16", "h")

    def i32(self) -> Any:
        """A signed integer of 4 bytes."""
        return _number("i32", "i")

    def i64(self) -> Any:
        """A signed integer of 8 bytes."""
        return _number("i64", "q")

    def u8(self) -> Any:
        """An unsigned integer of 1 byte."""
        return _number("u8", "B")

    def u16(self) -> Any:
        """An unsigned integer of 2 bytes."""
        return _number("u16", "H")

    def u32(self) -> Any:
        """An unsigned integer of 4 bytes."""
        return _number("u32", "I")

    def u64(self) -> Any:
        """An unsigned integer of 8 bytes."""
        return _number("u64", "Q")

    def f32(self) -> Any:
        """An IEEE 754 number of 4 bytes."""
        return Field("f32", "f", 4, 0.0, float)

    def f64(self) -> Any:
        """An IEEE 754 number of 8 bytes."""
        return Field("f64", "d", 8, 0.0, float)

    def bool(self) -> Any:
        """One byte: 0 is False, anything else True; written as 0 or 1."""
        return Field("bool", "?", 1, False, _truth)

    def chars(
        self,
        size: int,
        errors: Literal["strict", "surrogateescape"] = "strict",
        secret: builtins.bool = False,
    ) -> Any:
        """UTF-8 text in C{size} bytes, ended by a NUL: at most C{size - 1} bytes of text.

        Reading stops at the first NUL and never takes the last byte (PROTOCOL.md 3); writing
        fills with NULs and refuses, with C{ValueError}, text that does not fit or holds a NUL.

        @param errors: C{strict}: a body that is not UTF-8 is refused as C{bad_body};
            C{surrogateescape}: the handler gets it, its stray bytes as lone surrogates.
        @param secret: a password, say: it is shown in no C{repr} and quoted in no error.
        """
        if size < 1:
            raise ValueError("chars needs at least 1 byte, for the NUL")

        def load(raw: bytes) -> str:
            try:
                return raw[: size - 1].partition(b"\0")[0].decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise BadBody(f"text that is not UTF-8: {error.reason}") from None

        def dump(text: str) -> bytes:
            if not isinstance(text, str):
                raise TypeError(f"{type(text).__name__} is no text")
            raw = text.encode("utf-8", errors)
            if len(raw) >= size or b"\0" in raw:
                raise ValueError(f"{text!r} is not a text of at most {size - 1} bytes without NUL")
            return raw

        return Field(f"chars({size})", f"{size}s", size, "", str, load, dump, secret=secret)

    def raw(self, size: int, secret: builtins.bool = False) -> Any:
        """Exactly C{size} bytes; a shorter value is filled with NULs, a longer one refused.

        @param secret: it is shown in no C{repr} and quoted in no error.
        """

        def dump(value: bytes) -> bytes:
            if len(value) > size:
                raise ValueError(f"{len(value)} bytes do not fit into {size}")
            return value

        parse = bytes.fromhex
        return Field(
            f"raw({size})", f"{size}s", size, bytes(size), parse, None, dump, secret=secret
        )

    def array(self, item: Any, count: int) -> Any:
        """C{count} values of the field C{item}, as a list; a shorter list is filled up."""
        load, dump = _list_codec(item)

        def fill(values: Sequence[Any]) -> Any:
            if len(values) > count:
                raise ValueError(f"{len(values)} values do not fit into {count}")
            return dump([*values, *[item.default] * (count - len(values))])

        return Field(
            f"array({item.kind}, {count})",
            _repeated(item, count),
            item.size * count,
            [item.default] * count,
            _list_parser(item),
            load,
            fill,
            count,
            secret=item.secret,
        )

    def tail(self, item: Any = None) -> Any:
        """The rest of the body, of any length: bytes, or a list of values of the field C{item}.

        Only the last field of a message can be one.
        """
        if item is None:
            return Field("tail", "", 0, b"", bytes.fromhex, is_tail=True)
        load, dump = _list_codec(item)
        parse = _list_parser(item)
        return Field(
            f"tail({item.kind})", "", 0, [], parse, load, dump, None, item, True, item.secret
        )


def _repeated(item: Field, count: int) -> str:
    return item.format * count if item.format[-1] == "s" else f"{count}{item.format}"


def _list_codec(item: Field) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    load, dump = item.load, item.dump
    if item.is_tail or item.count is not None:
        raise TypeError(f"{item.kind} cannot be repeated")
    return (
        (lambda values: [load(value) for value in values]) if load else list,
        (lambda values: [dump(value) for value in values]) if dump else list,
    )


def _list_parser(item: Field) -> Callable[[str], list[Any]]:
    return lambda text: [item.parse(part) for part in text.split(",")] if text else []


field = _Fields()


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a L{Message} class is compiled to."""

    order: str
    fixed: struct.Struct
    fields: dict[str, Field]
    plan: tuple[tuple[str, int | slice, Callable[[Any], Any] | None], ...]
    tail: str | None


@dataclass_transform(kw_only_default=True)
class Message:
    """A body of fixed layout, with at most one part of variable length at its end.

    A subclass lists its fields; they stand in the body in that order, unpadded, big-endian::

        class Login(Message):                   # 96 bytes
            username: str = field.chars(56)
            password: str = field.chars(40)

    C{class Reading(Message, byteorder="little")} chooses the other byte order. A subclass of a
    message has its parent's fields first. Attributes that are not given to the constructor
    have their zero value. No field can be called as a method of L{Message}, such as C{encode}.

    @cvar size: bytes of a body without its tail.
    """

    size: ClassVar[int] = 0
    _layout: ClassVar[_Layout] = _Layout(">", struct.Struct(">"), {}, (), None)

    def __init_subclass__(cls, byteorder: Literal["big", "little"] | None = None) -> None:
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        for name in own:
            if name == "self" or (name != "size" and hasattr(Message, name)):
                raise TypeError(f"{cls.__name__}.{name}: a message has this name for itself")
            delattr(cls, name)
        fields = {**cls._layout.fields, **own}
        order = _ORDER[byteorder] if byteorder else cls._layout.order
        plan: list[tuple[str, int | slice, Callable[[Any], Any] | None]] = []
        position = 0
        for name, f in fields.items():
            if f.is_tail and name != next(reversed(fields)):
                raise TypeError(f"{cls.__name__}.{name}: only the last field can be a tail")
            if f.is_tail:
                continue
            if f.count is None:
                plan.append((name, position, f.load))
                position += 1
            else:
                plan.append((name, slice(position, position + f.count), f.load))
                position += f.count
        fixed = struct.Struct(order + "".join(f.format for f in fields.values()))
        tail = next((name for name, f in fields.items() if f.is_tail), None)
        cls._layout = _Layout(order, fixed, fields, tuple(plan), tail)
        cls.size = fixed.size

    def __init__(self, **values: Any) -> None:
        fields = self._layout.fields
        for name in values:
            if name not in fields:
                raise TypeError(f"{type(self).__name__} has no field {name!r}")
        for name, f in fields.items():
            default = list(f.default) if isinstance(f.default, list) else f.default
            self.__dict__[name] = values.get(name, default)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """The message that C{body} holds.

        @raise BadBody: it has another size than the message, or text that is not UTF-8.
        """
        layout = cls._layout
        if len(body) != layout.fixed.size and (
            layout.tail is None or len(body) < layout.fixed.size
        ):
            raise BadBody(f"{len(body)} bytes, {cls.__name__} has {cls._expected()}")
        values = layout.fixed.unpack_from(body)
        message = cls.__new__(cls)
        attributes = message.__dict__
        for name, place, load in layout.plan:
            value = values[place]
            attributes[name] = load(value) if load is not None else value
        if layout.tail is not None:
            attributes[layout.tail] = cls._load_tail(body[layout.fixed.size :])
        return message

    def encode(self) -> bytes:
        """The body.

        @raise ValueError: a value that its field cannot hold; the text names the field.
        """
        layout = self._layout
        try:
            body = layout.fixed.pack(*self._values())
            return body + self._dump_tail() if layout.tail is not None else body
        except (struct.error, ValueError, TypeError, OverflowError):
            raise self._blamed() from None

    @classmethod
    def parse(cls, values: dict[str, str]) -> Self:
        """The message that C{values}, texts by field name, spell.

        @raise ValueError: no such field, or a text that is not one of its values.
        """
        parsed = {}
        for name, text in values.items():
            f = cls._layout.fields.get(name)
            if f is None:
                known = ", ".join(cls._layout.fields) or "none"
                raise ValueError(f"{cls.__name__} has no field {name!r}; its fields: {known}")
            try:
                parsed[name] = f.parse(text)
            except ValueError:
                told = "***" if f.secret else text
                raise ValueError(f"{name}={told}: not a value of {f.kind}") from None
        return cls(**parsed)

    @classmethod
    def fields(cls) -> dict[str, Field]:
        """The fields by name, in the order of the body."""
        return dict(cls._layout.fields)

    @classmethod
    def _expected(cls) -> str:
        return f"{cls.size}" if cls._layout.tail is None else f"at least {cls.size}"

    @classmethod
    def _load_tail(cls, rest: bytes) -> Any:
        name = cls._layout.tail
        assert name is not None
        f = cls._layout.fields[name]
        if f.item is None:
            return rest
        count, odd = divmod(len(rest), f.item.size)
        if odd:
            raise BadBody(f"{len(rest)} bytes are no whole number of {f.item.kind}")
        values = struct.unpack(cls._layout.order + _repeated(f.item, count), rest)
        assert f.load is not None
        return f.load(values)

    def _values(self) -> list[Any]:
        values: list[Any] = []
        for name, f in self._layout.fields.items():
            if f.is_tail:
                break
            value = self.__dict__[name]
            if f.dump is not None:
                value = f.dump(value)
            if f.count is None:
                values.append(value)
            else:
                values.extend(value)
        return values

    def _dump_tail(self) -> bytes:
        name = self._layout.tail
        assert name is not None
        f, value = self._layout.fields[name], self.__dict__[name]
        if f.item is None:
            return b"".join([value])  # not bytes(): of a number it makes so many NULs
        assert f.dump is not None
        values = f.dump(value)
        return struct.pack(self._layout.order + _repeated(f.item, len(values)), *values)

    def _blamed(self) -> ValueError:
        """The error that names the first field whose value cannot be packed."""
        for name, f in self._layout.fields.items():
            try:
                if f.is_tail:
                    self._dump_tail()
                    continue
                value = self.__dict__[name]
                value = value if f.dump is None else f.dump(value)
                struct.pack(self._layout.order + f.format, *([value] if f.count is None else value))
            except (struct.error, ValueError, TypeError, OverflowError) as error:
                told = f"not a value of {f.kind}" if f.secret else error
                return ValueError(f"{type(self).__name__}.{name}: {told}")
        raise AssertionError("every field can be packed alone, but not all together")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = (
            f"{name}=***" if f.secret else f"{name}={self.__dict__[name]!r}"
            for name, f in self._layout.fields.items()
        )
        return f"{type(self).__name__}({', '.join(shown)})"
