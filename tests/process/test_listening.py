"""Listening: one socket for each address and slot. The sockets are real, on 127.0.0.1."""

from __future__ import annotations

import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Address
from ccserver.errors import StartError
from ccserver.process.listening import Listening


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ListeningCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.address = Address("127.0.0.1", free_port())
        self.other = Address("127.0.0.1", free_port())
        self.fds = set(os.listdir("/proc/self/fd"))

    def opened(self, *addresses: Address, slots: int = 1) -> Listening:
        listening = Listening(addresses or (self.address,), 16)
        self.addCleanup(listening.close)
        listening.open(slots)
        return listening

    def assertNothingLeftOpen(self) -> None:
        now = {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
        self.assertEqual(now - self.fds, set())


class OpenTests(ListeningCase):
    def test_nothing_is_opened_before_it_is_asked_for(self):
        Listening([self.address], 16)
        self.assertNothingLeftOpen()

    def test_each_slot_has_a_socket_for_each_address_in_their_order(self):
        listening = self.opened(self.address, self.other, slots=3)
        for slot in range(3):
            names = [bound.getsockname() for bound in listening.of_slot(slot)]
            self.assertEqual(
                names, [("127.0.0.1", self.address.port), ("127.0.0.1", self.other.port)]
            )
        fds = {bound.fileno() for slot in range(3) for bound in listening.of_slot(slot)}
        self.assertEqual(len(fds), 6)

    def test_they_listen_and_do_not_block(self):
        (bound,) = self.opened().of_slot(0)
        self.assertTrue(bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        self.assertRaises(BlockingIOError, bound.accept)

    def test_clients_wait_in_them(self):
        (bound,) = self.opened().of_slot(0)
        with socket.create_connection(("127.0.0.1", self.address.port), 5) as client:
            accepted, _ = bound.accept()
            with accepted:
                self.assertEqual(accepted.getpeername(), client.getsockname())

    def test_no_child_inherits_them_by_accident(self):
        (bound,) = self.opened().of_slot(0)
        self.assertFalse(bound.get_inheritable())

    def test_ipv6(self):
        if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
            self.skipTest("no IPv6 here")
        (bound,) = self.opened(Address("::1", self.address.port)).of_slot(0)
        self.assertEqual(bound.getsockname()[:2], ("::1", self.address.port))


class CloseTests(ListeningCase):
    def test_nothing_is_left_open(self):
        self.opened(self.address, self.other, slots=2).close()
        self.assertNothingLeftOpen()

    def test_closing_twice_is_no_fault(self):
        listening = self.opened()
        listening.close()
        listening.close()

    def test_the_port_is_free_again(self):
        self.opened().close()
        self.opened()

    def test_what_was_taken_belongs_to_the_taker(self):
        listening = self.opened(slots=2)
        (taken,) = listening.take(0)
        self.addCleanup(taken.close)
        self.assertEqual(listening.of_slot(0), [])
        listening.close()
        self.assertEqual(taken.getsockname(), ("127.0.0.1", self.address.port))


class FailureTests(ListeningCase):
    def refusal(self, *addresses: Address) -> str:
        fds = set(os.listdir("/proc/self/fd"))
        text = str(self.assertRaises(StartError, Listening(addresses, 16).open, 2))
        left = set(os.listdir("/proc/self/fd")) - fds
        self.assertEqual([fd for fd in left if os.path.exists(f"/proc/self/fd/{fd}")], [])
        return text

    def test_a_port_that_is_taken_is_told_in_words_and_nothing_stays_open(self):
        with socket.create_server(("127.0.0.1", self.address.port)):
            text = self.refusal(self.other, self.address)
        self.assertEqual(
            text, f"cannot listen on 127.0.0.1:{self.address.port}: Address already in use"
        )

    def test_a_second_server_on_the_port_is_refused_in_spite_of_so_reuseport(self):
        self.opened()
        self.assertIn("Address already in use", self.refusal(self.address))

    def test_an_address_that_is_not_ours_is_told(self):
        text = self.refusal(Address("192.0.2.1", self.address.port))
        self.assertEqual(
            text,
            f"cannot listen on 192.0.2.1:{self.address.port}: Cannot assign requested address",
        )
