"""Steering: which of the sockets that share a port the kernel gives new connections to."""

from __future__ import annotations

import ctypes
import socket
import struct

SO_ATTACH_REUSEPORT_CBPF = 51
SO_DETACH_REUSEPORT_BPF = 68
SO_COOKIE = 57

# instructions of classic BPF, as struct sock_filter: code, jump if true, jump if false, operand
_LOAD_RANDOM = (0x20, 0, 0, 0xFFFFF000 + 56)  # A = SKF_AD_RANDOM
_MODULO, _RETURN_A = 0x94, 0x16


def steer(member: socket.socket, count: int) -> None:
    """Give new connections, evenly, only to the C{count} sockets of a group that are its first.

    They are counted in the order in which they began to listen; when a socket is closed, the last
    one takes its place.

    @param member: any listening SO_REUSEPORT socket of the group.
    @param count: at least one.
    @raise OSError: the kernel can't, or may not.
    """
    instructions = (_LOAD_RANDOM, (_MODULO, 0, 0, count), (_RETURN_A, 0, 0, 0))
    code = b"".join(struct.pack("HBBI", *each) for each in instructions)
    filters = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(code) // 8, ctypes.addressof(filters))
    member.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)


def unsteer(member: socket.socket) -> None:
    """Give new connections to all sockets of the group.

    @raise OSError: the kernel can't, or nothing was steered.
    """
    member.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)


def shares_port(listening: socket.socket) -> bool:
    """Whether it is one of a group, or can become one."""
    return bool(listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def is_listening(bound: socket.socket) -> bool:
    """Whether clients can connect to it."""
    return bool(bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def identity(any_socket: socket.socket) -> bytes:
    """The same for all descriptors of one socket, and for no other socket."""
    return any_socket.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
