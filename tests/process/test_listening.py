"""Listening: one socket for each address and slot. The sockets are real, on 127.0.0.1."""

from __future__ import annotations

import json
import os
import pwd
import socket
from collections import Counter
from unittest import skipUnless

from twisted.trial.unittest import SynchronousTestCase

from ccserver.config import Address
from ccserver.errors import StartError
from ccserver.net.keepalive import KeepAlive
from ccserver.process import steering
from ccserver.process.listening import Listening
from tests.ports import free_port
from tests.support import logged, texts

BACKLOG = 512
IPV6 = socket.has_ipv6 and os.path.exists("/proc/net/if_inet6")


def accepted(listening: socket.socket) -> int:
    """How many clients waited to be accepted."""
    count = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def listens(bound: socket.socket) -> bool:
    return steering.is_listening(bound)


class ListeningCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.address = Address("127.0.0.1", free_port())
        self.other = Address("127.0.0.1", free_port())
        self.fds = set(os.listdir("/proc/self/fd"))

    def opened(self, *addresses: Address, slots: int = 1) -> Listening:
        listening = Listening(addresses or (self.address,), BACKLOG)
        self.addCleanup(listening.close)
        listening.open(slots)
        return listening

    def follow(self, old: Listening, *addresses: Address, slots: int = 1) -> Listening:
        new = old.follow(addresses, slots, BACKLOG)
        self.addCleanup(new.close)
        return new

    def connect(self, count: int = 1, address: Address | None = None) -> None:
        """Clients that stay until the end of the test."""
        for _ in range(count):
            client = socket.create_connection(address or self.address, 5)
            self.addCleanup(client.close)

    def waiting(self, listening: Listening, slots: int) -> list[int]:
        """How many clients wait at the first address of each slot, who are let go."""
        return [accepted(listening.of_slot(slot)[0]) for slot in range(slots)]

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

    def test_keepalive_is_set_before_any_client_can_connect(self):
        listening = Listening([self.address], 16, KeepAlive(idle=60, user_timeout=1.5))
        self.addCleanup(listening.close)
        listening.open(2)
        for slot in range(2):
            (bound,) = listening.of_slot(slot)
            self.assertEqual(bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 1500)
            self.assertEqual(bound.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)

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
        if not IPV6:
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


class FollowTests(ListeningCase):
    def test_what_both_have_is_the_same_socket(self):
        old = self.opened(self.address, slots=2)
        new = self.follow(old, self.address, self.other, slots=2)
        for slot in range(2):
            self.assertIs(new.of_slot(slot)[0], old.of_slot(slot)[0])
            self.assertEqual(new.of_slot(slot)[1].getsockname(), tuple(self.other))

    def test_what_is_new_listens_when_it_is_told_to(self):
        old = self.opened(self.address)
        new = self.follow(old, self.address, self.other, slots=2)
        fresh = [new.of_slot(0)[1], *new.of_slot(1)]
        self.assertEqual([listens(bound) for bound in fresh], [False] * 3)
        self.assertRaises(ConnectionRefusedError, socket.create_connection, self.other, 5)
        new.listen()
        self.assertEqual([listens(bound) for bound in fresh], [True] * 3)

    def test_clients_that_wait_stay_where_they_are(self):
        old = self.opened(slots=2)
        self.connect(8)
        new = self.follow(old, self.address, slots=3)
        new.listen()
        old.release(new)
        self.assertEqual(sum(self.waiting(new, 3)), 8)

    def test_after_the_commit_what_is_new_stays_open_and_what_is_gone_is_closed(self):
        old = self.opened(self.address, slots=3)
        leaving = old.of_slot(2)
        new = self.follow(old, self.address, self.other, slots=2)
        old.release(new)
        self.assertEqual([bound.fileno() for bound in leaving], [-1])
        self.assertNotIn(-1, [bound.fileno() for slot in range(2) for bound in new.of_slot(slot)])
        old.close()
        self.assertEqual(len(new.of_slot(0)), 2)
        new.close()
        self.assertNothingLeftOpen()

    def test_an_address_that_is_gone_refuses_clients_after_the_commit(self):
        old = self.opened(self.address, self.other)
        new = self.follow(old, self.address)
        old.release(new)
        self.assertRaises(ConnectionRefusedError, socket.create_connection, self.other, 5)
        self.connect()

    def test_after_an_abort_the_old_has_what_it_had(self):
        old = self.opened(self.address, slots=2)
        new = self.follow(old, self.other, slots=3)
        new.release(old)
        self.connect(4)
        self.assertEqual(sum(self.waiting(old, 2)), 4)
        self.assertRaises(ConnectionRefusedError, socket.create_connection, self.other, 5)

    def test_after_an_abort_nothing_of_what_was_new_is_open(self):
        old = self.opened(self.address, slots=2)
        self.follow(old, self.other, slots=3).release(old)
        old.close()
        self.assertNothingLeftOpen()

    def test_a_new_address_that_is_taken_changes_nothing(self):
        old = self.opened(self.address)
        fds = set(os.listdir("/proc/self/fd"))
        third = Address("127.0.0.1", free_port())
        with socket.create_server(self.other):
            error = self.assertRaises(
                StartError, old.follow, (self.address, third, self.other), 3, 16
            )
        self.assertEqual(
            str(error), f"cannot listen on 127.0.0.1:{self.other.port}: Address already in use"
        )
        left = set(os.listdir("/proc/self/fd")) - fds
        self.assertEqual([fd for fd in left if os.path.exists(f"/proc/self/fd/{fd}")], [])
        self.connect()
        self.assertEqual(self.waiting(old, 1), [1])

    def test_an_address_may_take_the_place_of_one_that_is_in_its_way(self):
        old = self.opened(self.address)
        everywhere = Address("0.0.0.0", self.address.port)
        new = self.follow(old, everywhere)
        new.listen()
        old.release(new)
        self.connect()
        self.assertEqual(self.waiting(new, 1), [1])

    def test_no_slots_means_those_there_are(self):
        old = self.opened(slots=2)
        new = self.follow(old, self.address, slots=0)
        old.release(new)
        self.assertEqual(new.slots, 2)
        self.connect(2)
        self.assertEqual(sum(self.waiting(new, 2)), 2)

    def test_a_changed_backlog_holds_from_listen_on(self):
        old = self.opened()
        new = old.follow([self.address], 1, 2)
        self.addCleanup(new.close)
        new.listen()
        # TCP_INFO of a listening socket: tcpi_unacked wait, of at most tcpi_sacked
        info = new.of_slot(0)[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        self.assertEqual(int.from_bytes(info[28:32], "little"), 2)

    @skipUnless(os.geteuid() == 0, "needs root")
    def test_another_user_can_open_more_beside_those_that_were_given_to_him(self):
        nobody = pwd.getpwnam("nobody").pw_uid
        old = self.opened(slots=2)
        old.give(nobody)
        os.seteuid(nobody)
        self.addCleanup(os.seteuid, 0)
        self.follow(old, self.address, slots=3).listen()
        own = {steering.identity(old.of_slot(slot)[0]) for slot in range(2)}
        self.assertEqual(len(own), 2)

    @skipUnless(os.geteuid() == 0, "needs root")
    def test_a_slot_that_cannot_have_a_socket_of_its_own_shares_one(self):
        events = logged(self)
        old = self.opened(slots=2)
        os.seteuid(pwd.getpwnam("nobody").pw_uid)  # to whom they were not given
        self.addCleanup(os.seteuid, 0)
        new = self.follow(old, self.address, slots=4)
        names = [steering.identity(new.of_slot(slot)[0]) for slot in range(4)]
        self.assertEqual(names[2:], names[:2])
        fds = {new.of_slot(slot)[0].fileno() for slot in range(4)}
        self.assertEqual(len(fds), 4)
        self.assertIn(
            f"slot 2 shares a socket of {self.address} with another: Address already in use",
            texts(events),
        )


class SteeringTests(ListeningCase):
    CLIENTS = 400

    def spread(self, listening: Listening, slots: int) -> list[int]:
        """How many of L{CLIENTS} clients come to each slot."""
        for _ in range(self.CLIENTS):
            socket.create_connection(self.address, 5).close()
        return self.waiting(listening, slots)

    def test_new_connections_go_only_to_the_first_slots_and_evenly(self):
        listening = self.opened(slots=4)
        listening.steer(2)
        first, second, *rest = self.spread(listening, 4)
        self.assertEqual(rest, [0, 0])
        # 400 throws of a coin: less than 130 of a side once in 10^12 runs
        self.assertGreater(min(first, second), 130)

    def test_who_waits_already_stays_in_his_place(self):
        listening = self.opened(slots=4)
        self.connect(40)
        listening.steer(1)
        waiting = self.waiting(listening, 4)
        self.assertEqual(sum(waiting), 40)
        self.assertGreater(sum(waiting[1:]), 0)

    def test_it_ends(self):
        listening = self.opened(slots=3)
        listening.steer(1)
        listening.unsteer()
        self.assertGreater(min(self.spread(listening, 3)), 60)

    def test_to_end_it_without_a_begin_is_no_fault(self):
        self.opened(slots=2).unsteer()

    def test_it_holds_while_those_that_leave_are_closed(self):
        old = self.opened(slots=4)
        new = self.follow(old, self.address, slots=2)
        old.steer(2)
        old.release(new)
        self.assertGreater(min(self.spread(new, 2)), 130)
        new.unsteer()
        new = self.follow(new, self.address, slots=3)
        new.listen()
        new.steer(3)
        self.assertGreater(min(self.spread(new, 3)), 60)

    def test_what_follows_can_steer_for_what_it_does_not_have(self):
        old = self.opened(slots=3)
        new = self.follow(old, self.address, slots=1)
        new.steer(1)
        self.assertEqual(self.spread(old, 3), [self.CLIENTS, 0, 0])

    def test_sockets_that_do_not_listen_yet_do_not_count(self):
        old = self.opened(slots=2)
        new = self.follow(old, self.address, slots=4)
        new.steer(1)
        self.assertEqual(self.spread(new, 2), [self.CLIENTS, 0])

    def test_every_address_is_steered(self):
        listening = self.opened(self.address, self.other, slots=2)
        listening.steer(1)
        self.connect(30, self.other)
        self.assertEqual(accepted(listening.of_slot(1)[1]), 0)
        self.assertEqual(accepted(listening.of_slot(0)[1]), 30)

    def test_a_kernel_that_cannot_is_told_of_once(self):
        def refuse(member: socket.socket, count: int) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(steering, "steer", refuse)
        events = logged(self)
        listening = self.opened(slots=2)
        listening.steer(1)
        listening.steer(1)
        (text,) = texts(events)
        self.assertIn("cannot be steered: [Errno 1] Operation not permitted", text)

    def test_256_slots_can_be_told_apart(self):
        listening = self.opened(slots=256)
        listening.steer(255)
        came = Counter(
            {slot: count for slot, count in enumerate(self.spread(listening, 256)) if count}
        )
        self.assertEqual(sum(came.values()), self.CLIENTS)
        self.assertNotIn(255, came)
        self.assertGreater(len(came), 128)


class InheritedTests(ListeningCase):
    def passed(self, count: int = 1, share: bool = True) -> list[socket.socket]:
        """Sockets that somebody else has opened."""
        sockets = []
        for _ in range(count):
            bound = socket.socket()
            self.addCleanup(bound.close)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
            bound.bind(self.address)
            bound.listen(BACKLOG)
            sockets.append(bound)
        return sockets

    def inheriting(self, sockets: list[socket.socket], slots: int) -> Listening:
        listening = Listening([self.address], BACKLOG)
        self.addCleanup(listening.close)
        listening.open(slots, {self.address: sockets})
        return listening

    def test_each_is_a_slots_and_does_not_block(self):
        sockets = self.passed(2)
        listening = self.inheriting(sockets, 2)
        self.assertEqual([listening.of_slot(slot) for slot in range(2)], [[s] for s in sockets])
        self.assertEqual([bound.getblocking() for bound in sockets], [False, False])

    def test_what_is_missing_is_opened_and_listens_when_told(self):
        listening = self.inheriting(self.passed(1), 3)
        self.assertEqual(
            [listens(listening.of_slot(slot)[0]) for slot in range(3)], [True, False, False]
        )
        listening.listen()
        self.connect(60)
        self.assertGreater(min(self.waiting(listening, 3)), 0)

    def test_one_without_so_reuseport_is_shared_by_all_slots(self):
        listening = self.inheriting(self.passed(1, share=False), 3)
        names = {steering.identity(listening.of_slot(slot)[0]) for slot in range(3)}
        self.assertEqual(len(names), 1)
        listening.steer(1)
        self.connect()
        self.assertEqual(accepted(listening.of_slot(2)[0]), 1)

    def test_the_surplus_goes_on_listening_until_it_is_dropped(self):
        sockets = self.passed(3)
        listening = self.inheriting(sockets, 1)
        self.assertEqual(listening.surplus, 2)
        self.connect(30)
        self.assertEqual(sum(map(accepted, sockets)), 30)
        listening.steer(1)
        self.connect(10)
        self.assertEqual(list(map(accepted, sockets)), [10, 0, 0])
        listening.drop_surplus()
        self.assertEqual(listening.surplus, 0)
        self.assertEqual([bound.fileno() < 0 for bound in sockets], [False, True, True])

    def test_a_failure_closes_them_too(self):
        sockets = self.passed(1)
        listening = Listening([self.address, self.other], 16)
        with socket.create_server(self.other):
            self.assertRaises(StartError, listening.open, 1, {self.address: sockets})
        self.assertEqual(sockets[0].fileno(), -1)

    def test_other_addresses_are_opened_as_usual(self):
        listening = Listening([self.other, self.address], 16)
        self.addCleanup(listening.close)
        listening.open(1, {self.address: self.passed()})
        names = [bound.getsockname() for bound in listening.of_slot(0)]
        self.assertEqual(names, [tuple(self.other), tuple(self.address)])

    def test_what_a_child_inherits_is_described_in_the_order_of_the_slots(self):
        listening = self.opened(self.address, self.other, slots=2)
        descriptors, text = listening.inheritance(7)
        self.assertEqual(json.loads(text), {str(self.address): [7, 8], str(self.other): [9, 10]})
        names = {
            fd: listening.of_slot(slot)[place].fileno()
            for fd, slot, place in ((7, 0, 0), (8, 1, 0), (9, 0, 1), (10, 1, 1))
        }
        self.assertEqual(descriptors, names)
