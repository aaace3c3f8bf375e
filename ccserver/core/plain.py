"""Plain values to bytes and back, exactly: what travels from one process to another.

Plain are None, bool, int, float, str, bytes, and list, tuple, dict, set and frozenset of plain
values. Their types are kept, dicts keep their order. An instance of a subclass is not plain: it
would arrive as something else. A value that is there twice arrives as two.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ccserver.errors import NotCarried

DEPTH = 64
"""How deep plain values may be nested; a value that contains itself has no end."""

_LENGTH = struct.Struct(">I")
_FLOAT = struct.Struct(">d")
_INT = struct.Struct(">q")
_INTS = range(-(1 << 63), 1 << 63)

LENGTH_SIZE = _LENGTH.size


def dump(value: Any, name: str, limit: int) -> bytes:
    """C{value} as bytes.

    @param name: what C{value} is called in errors.
    @param limit: how many bytes there may be.
    @raise NotCarried: it is not plain, or too big; the text names the place in it.
    """
    out = _Output(name, limit)
    out.add(value, (), 0)
    return b"".join(out.chunks)


def load(data: bytes) -> Any:
    """The value that L{dump} made C{data} of.

    @raise ValueError: it was made by nobody.
    """
    source = _Input(data)
    try:
        value = source.value(0)
    except (struct.error, IndexError, TypeError, OverflowError) as error:
        raise ValueError(f"no plain value: {error}") from None
    if source.place != len(data):
        raise ValueError(f"no plain value: {len(data) - source.place} bytes behind it")
    return value


class _Output:
    """The bytes of a value, as far as they are made."""

    def __init__(self, name: str, limit: int) -> None:
        self.chunks: list[bytes] = []
        self._name = name
        self._limit = self._left = limit

    def add(self, value: Any, path: tuple[Any, ...], depth: int) -> None:
        """@param path: how one comes to C{value}: keys, and places in what has an order."""
        kind = type(value)
        if value is None:
            self._push(b"N")
        elif kind is bool:
            self._push(b"T" if value else b"F")
        elif kind is str:
            self._sized(b"s", value.encode("utf-8", "surrogatepass"))
        elif kind is int:
            if value in _INTS:
                self._push(b"i" + _INT.pack(value))
            else:
                size = value.bit_length() // 8 + 1
                self._sized(b"I", value.to_bytes(size, "big", signed=True))
        elif kind is float:
            self._push(b"f" + _FLOAT.pack(value))
        elif kind is bytes:
            self._sized(b"b", value)
        elif kind is dict:
            pairs = list(value.items())  # a copy, for a thread of the application may change it
            self._length(b"d", len(pairs), path, depth)
            for key, item in pairs:
                self.add(key, (*path, _KeyOf(key)), depth + 1)
                self.add(item, (*path, key), depth + 1)
        elif kind is list or kind is tuple:
            items = tuple(value)
            self._length(b"l" if kind is list else b"t", len(items), path, depth)
            for place, item in enumerate(items):
                self.add(item, (*path, place), depth + 1)
        elif kind is set or kind is frozenset:
            items = tuple(value)
            self._length(b"e" if kind is set else b"z", len(items), path, depth)
            for item in items:
                self.add(item, (*path, _KeyOf(item)), depth + 1)
        else:
            raise NotCarried(f"{self._place(path)}: {_type_name(kind)} is not plain")

    def _sized(self, tag: bytes, data: bytes) -> None:
        if len(data) > self._left:
            self._too_big()
        self._push(tag + _LENGTH.pack(len(data)))
        self._push(data)

    def _length(self, tag: bytes, count: int, path: tuple[Any, ...], depth: int) -> None:
        if depth >= DEPTH:
            raise NotCarried(f"{self._place(path)}: nested deeper than {DEPTH} levels")
        if count > self._left:
            self._too_big()
        self._push(tag + _LENGTH.pack(count))

    def _push(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._too_big()
        self.chunks.append(data)

    def _too_big(self) -> None:
        raise NotCarried(f"{self._name}: more than {self._limit} bytes")

    def _place(self, path: tuple[Any, ...]) -> str:
        """C{state['user'][3]}; shortened in the middle, for a path may be deep, a key long."""
        steps = [_short(step) for step in path]
        if len(steps) > 8:
            steps[4:-4] = ["..."]
        return self._name + "".join(steps)


class _KeyOf:
    """A step to a dict's key, or into a set."""

    def __init__(self, key: object) -> None:
        self.key = key


def _short(step: Any) -> str:
    if isinstance(step, _KeyOf):
        return "{" + _type_name(type(step.key)) + "}"
    # not the repr of a thing that is no plain value, or a long one
    text = repr(step) if type(step) in (str, int, bytes, bool) else _type_name(type(step))
    return f"[{text if len(text) <= 40 else text[:37] + '...'}]"


def _type_name(kind: type) -> str:
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


class _Input:
    """Bytes that are made a value, as far as they are read.

    @ivar place: where the next one begins.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def value(self, depth: int) -> Any:
        if depth > DEPTH:
            raise ValueError("no plain value: nested too deep")
        tag = self._take(1)
        constants = {b"N": None, b"T": True, b"F": False}
        if tag in constants:
            return constants[tag]
        if tag == b"i":
            return _INT.unpack(self._take(_INT.size))[0]
        if tag == b"f":
            return _FLOAT.unpack(self._take(_FLOAT.size))[0]
        (length,) = _LENGTH.unpack(self._take(LENGTH_SIZE))
        if tag == b"s":
            return self._take(length).decode("utf-8", "surrogatepass")
        if tag == b"b":
            return self._take(length)
        if tag == b"I":
            return int.from_bytes(self._take(length), "big", signed=True)
        if tag == b"d":
            pairs = {}
            for _ in range(length):
                key = self.value(depth + 1)
                pairs[key] = self.value(depth + 1)
            return self._whole(pairs, length)
        make = _COLLECTIONS.get(tag)
        if make is None:
            raise ValueError(f"no plain value: {tag!r}")
        return self._whole(make(self._items(length, depth + 1)), length)

    def _items(self, count: int, depth: int) -> Iterator[Any]:
        for _ in range(count):
            yield self.value(depth)

    def _whole(self, collection: Any, length: int) -> Any:
        """The C{collection}, which has lost nothing to an equal one."""
        if len(collection) != length:
            raise ValueError("no plain value: the same key twice")
        return collection

    def _take(self, size: int) -> bytes:
        data = self._data[self.place : self.place + size]
        if len(data) != size:
            raise ValueError("no plain value: it ends too early")
        self.place += size
        return data


_COLLECTIONS: dict[bytes, Callable[[Iterable[Any]], Any]] = {
    b"l": list,
    b"t": tuple,
    b"e": set,
    b"z": frozenset,
}
