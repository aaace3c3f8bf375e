"""Inheritance: passed sockets find the addresses they are for. The sockets are real."""

from __future__ import annotations

import json
import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Address
from ccserver.errors import StartError
from ccserver.process.inheritance import inherited
from ccserver.process.listening import SOCKETS_VARIABLE, Listening
from ccserver.process.systemd import Systemd
from tests.ports import free_port
from tests.process.test_listening import IPV6
from tests.support import logged, texts


class FakeSystemd(Systemd):
    """Passes what it is made with."""

    def __init__(self, *given: socket.socket) -> None:
        Systemd.__init__(self, {})
        self.given = given

    def sockets(self) -> list[tuple[str, socket.socket]]:
        return [(f"unit{number}.socket", each) for number, each in enumerate(self.given)]


class SystemdTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.port = free_port()

    def given(self, host: str, dual: bool = False, listen: bool = True) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if family == socket.AF_INET6 and not IPV6:
            self.skipTest("no IPv6 here")
        given = socket.socket(family)
        self.addCleanup(given.close)
        if family == socket.AF_INET6:
            given.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        given.bind((host, self.port))
        if listen:
            given.listen(16)
        return given

    def inherited(self, *given: socket.socket, hosts: str) -> dict[str, list[socket.socket]]:
        addresses = [Address(host, self.port) for host in hosts.split()]
        found = inherited(FakeSystemd(*given), {}, addresses)
        return {address.host: sockets for address, sockets in found.items()}

    def test_a_socket_is_for_the_address_that_it_is_bound_to(self):
        given = self.given("127.0.0.1")
        self.assertEqual(self.inherited(given, hosts="127.0.0.2 127.0.0.1"), {"127.0.0.1": [given]})

    def test_ipv4_and_ipv6_alone_are_told_apart(self):
        four, six = self.given("0.0.0.0"), self.given("::")
        self.assertEqual(
            self.inherited(six, four, hosts="0.0.0.0 ::"), {"0.0.0.0": [four], "::": [six]}
        )

    def test_a_socket_for_both_is_for_ipv6_or_for_ipv4_if_only_that_is_wanted(self):
        given = self.given("::", dual=True)
        self.assertEqual(self.inherited(given, hosts="::"), {"::": [given]})
        self.assertEqual(self.inherited(given, hosts="0.0.0.0"), {"0.0.0.0": [given]})

    def test_slots_beside_a_socket_for_both_take_both_as_well(self):
        given = self.given("::", dual=True)
        given.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        address = Address("0.0.0.0", self.port)
        listening = Listening([address], 16)
        self.addCleanup(listening.close)
        listening.open(2, inherited(FakeSystemd(given), {}, [address]))
        with socket.create_connection(("127.0.0.1", self.port), 5):
            accepted, peer = listening.of_slot(1)[0].accept()
            accepted.close()
        self.assertEqual(peer[0], "::ffff:127.0.0.1")

    def test_a_socket_for_both_is_in_the_way_of_an_ipv4_address_beside_it(self):
        given = self.given("::", dual=True)
        error = self.assertRaises(StartError, self.inherited, given, hosts=":: 127.0.0.1")
        self.assertIn(f"cannot listen on 127.0.0.1:{self.port}: ", str(error))
        self.assertIn("BindIPv6Only=ipv6-only", str(error))
        self.assertEqual(given.fileno(), -1)

    def test_one_that_is_for_nothing_is_named_in_a_warning_and_closed(self):
        events = logged(self)
        given = self.given("127.0.0.1")
        self.assertEqual(self.inherited(given, hosts="127.0.0.2"), {})
        (text,) = texts(events)
        self.assertIn("unit0.socket", text)
        self.assertIn(f"127.0.0.1:{self.port}", text)
        self.assertEqual(given.fileno(), -1)

    def test_one_that_does_not_listen_or_is_no_tcp_is_not_used(self):
        events = logged(self)
        unix, other = socket.socketpair()
        self.addCleanup(other.close)
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", self.port))
        mute = self.given("127.0.0.1", listen=False)
        self.assertEqual(self.inherited(unix, datagrams, mute, hosts="127.0.0.1"), {})
        self.assertEqual(len(texts(events)), 3)
        self.assertEqual([s.fileno() for s in (unix, datagrams, mute)], [-1, -1, -1])


class OldMasterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addresses = [Address("127.0.0.1", free_port()) for _ in range(2)]
        self.old = Listening(self.addresses, 16)
        self.addCleanup(self.old.close)
        self.old.open(2)

    def passed(self, addresses: list[Address]) -> dict[Address, list[socket.socket]]:
        """What a new master has, whose descriptors are copies of the old one's."""
        descriptors, text = self.old.inheritance(1000)
        mine = {theirs: os.dup(fd) for theirs, fd in descriptors.items()}
        told = {
            name: [mine[theirs] for theirs in places] for name, places in json.loads(text).items()
        }
        self.fds = list(mine.values())
        self.environ = {SOCKETS_VARIABLE: json.dumps(told), "A": "B"}
        found = inherited(FakeSystemd(), self.environ, addresses)
        for sockets in found.values():
            for each in sockets:
                self.addCleanup(each.close)
        return found

    def test_the_sockets_are_those_of_the_old_master_in_the_order_of_its_slots(self):
        found = self.passed(self.addresses)
        for place, address in enumerate(self.addresses):
            with socket.create_connection(address, 5):
                waiting = [self.count(each) for each in found[address]]
                for slot, count in enumerate(waiting):
                    listening = self.old.of_slot(slot)[place]
                    self.assertEqual(count, self.count(listening))
            self.assertEqual(sum(waiting), 1)

    def count(self, listening: socket.socket) -> int:
        """How many wait: C{tcpi_unacked} of a listening socket."""
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return int.from_bytes(info[24:28], "little")

    def test_no_child_inherits_them_again(self):
        found = self.passed(self.addresses)
        self.assertEqual(
            {each.get_inheritable() for two in found.values() for each in two}, {False}
        )

    def test_those_of_an_address_that_is_gone_are_closed(self):
        found = self.passed(self.addresses[:1])
        self.assertEqual(list(found), self.addresses[:1])
        self.assertEqual(
            [os.path.exists(f"/proc/self/fd/{fd}") for fd in self.fds], [True] * 2 + [False] * 2
        )

    def test_the_variable_leaves_the_environment(self):
        self.passed(self.addresses)
        self.assertEqual(self.environ, {"A": "B"})

    def test_nonsense_is_refused_in_words(self):
        for told in (
            "{",
            "[1]",
            '{"127.0.0.1:5678": [987654]}',
            '{"127.0.0.1:5678": ["x"]}',
            '{"a": 1}',
        ):
            error = self.assertRaises(
                StartError, inherited, FakeSystemd(), {SOCKETS_VARIABLE: told}, self.addresses
            )
            self.assertIn("cannot take over sockets: CCSERVER_SOCKETS: ", str(error))
