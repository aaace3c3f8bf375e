"""Client addresses: lists of networks, and what an address may do in a worker."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core import addresses
from ccserver.core.addresses import (
    AccessList,
    AddressLimits,
    NetworkSet,
    Origins,
    address_key,
    host_of,
)
from ccserver.core.rates import Rate

FREE = AccessList()


def networks(*texts: str) -> list[addresses.Network]:
    return [ip_network(text) for text in texts]


class AddressTests(SynchronousTestCase):
    def test_a_host_is_what_stands_before_the_port(self):
        self.assertEqual(host_of("192.0.2.1:5000"), "192.0.2.1")
        self.assertEqual(host_of("[2001:db8::1]:5000"), "2001:db8::1")
        self.assertEqual(host_of("-"), "")

    def test_an_ipv4_address_is_a_client(self):
        self.assertNotEqual(address_key("192.0.2.1"), address_key("192.0.2.2"))

    def test_mapped_into_ipv6_it_is_the_same_one(self):
        self.assertEqual(address_key("::ffff:192.0.2.1"), address_key("192.0.2.1"))

    def test_a_network_of_64_bits_is_one_client_in_ipv6(self):
        self.assertEqual(address_key("2001:db8::1"), address_key("2001:db8::ffff:2"))
        self.assertNotEqual(address_key("2001:db8::1"), address_key("2001:db8:0:1::1"))

    def test_a_scope_is_no_part_of_it(self):
        self.assertEqual(address_key("fe80::1%eth0"), address_key("fe80::1"))

    def test_what_is_no_address_is_itself(self):
        self.assertEqual(address_key(""), "")
        self.assertEqual(address_key("a:b"), "a:b")


class NetworkSetTests(SynchronousTestCase):
    def test_both_kinds_are_kept_apart(self):
        ipv4 = NetworkSet(networks("0.0.0.0/0"))
        self.assertIn(ip_address("192.0.2.1"), ipv4)
        self.assertNotIn(ip_address("::1"), ipv4)

    def test_a_mapped_network_is_one_of_ipv4(self):
        mapped = NetworkSet(networks("::ffff:10.0.0.0/104"))
        self.assertIn(ip_address("10.1.2.3"), mapped)
        self.assertNotIn(ip_address("11.1.2.3"), mapped)

    @given(
        st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=20),
        st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    )
    @settings(deadline=None)
    def test_an_address_is_in_it_if_it_is_in_one_of_them(
        self, chosen: list[tuple[int, int]], numbers: list[int]
    ):
        each = [ip_network((number, length), strict=False) for number, length in chosen]
        together = NetworkSet(each)
        for number in [*numbers, *(number for number, _ in chosen)]:
            address = ip_address(number)
            self.assertEqual(address in together, any(address in network for network in each))


class AccessListTests(SynchronousTestCase):
    def test_without_networks_everybody_may(self):
        self.assertFalse(FREE)
        self.assertTrue(FREE.admits("192.0.2.1"))
        self.assertTrue(FREE.admits(""))

    def test_nobody_may_who_is_denied(self):
        access = AccessList(deny=networks("192.0.2.0/24", "2001:db8::/32"))
        for host, may in {
            "192.0.2.1": False,
            "192.0.3.1": True,
            "::ffff:192.0.2.1": False,
            "2001:db8::1": False,
            "2001:db9::1": True,
        }.items():
            self.assertEqual(access.admits(host), may, host)

    def test_where_some_are_allowed_nobody_else_may(self):
        access = AccessList(allow=networks("192.0.2.0/24"))
        self.assertTrue(access.admits("192.0.2.1"))
        self.assertFalse(access.admits("192.0.3.1"))
        self.assertFalse(access.admits("::1"))

    def test_who_is_denied_may_not_even_if_he_is_allowed(self):
        access = AccessList(networks("192.0.2.0/24"), networks("192.0.2.7"))
        self.assertTrue(access.admits("192.0.2.6"))
        self.assertFalse(access.admits("192.0.2.7"))

    def test_who_has_no_address_may_only_where_everybody_may(self):
        self.assertFalse(AccessList(deny=networks("192.0.2.0/24")).admits("-"))


class OriginsTests(SynchronousTestCase):
    def test_an_address_has_no_more_connections_than_it_may(self):
        origins = Origins(AddressLimits(connections=2), FREE)
        for _ in range(2):
            self.assertIsNone(origins.refusal("192.0.2.1", 0.0))
            last = origins.enter("192.0.2.1", 0.0)
        self.assertEqual(origins.refusal("192.0.2.1", 0.0), "address_limit")
        self.assertIsNone(origins.refusal("192.0.2.2", 0.0))
        assert last is not None
        origins.leave(last)
        self.assertIsNone(origins.refusal("192.0.2.1", 0.0))

    def test_who_comes_from_another_process_is_counted_and_not_refused(self):
        origins = Origins(AddressLimits(connections=1), FREE)
        for _ in range(3):
            origins.enter("192.0.2.1", 0.0)
        self.assertEqual(origins.refusal("192.0.2.1", 0.0), "address_limit")

    def test_an_address_makes_no_more_connections_in_a_second_than_it_may(self):
        origins = Origins(AddressLimits(accepts=Rate(5, 5)), FREE)
        refusals = [origins.refusal("192.0.2.1", 0.0) for _ in range(7)]
        self.assertEqual(refusals, [None] * 5 + ["address_rate"] * 2)
        self.assertIsNone(origins.refusal("192.0.2.1", 0.21))

    def test_connections_of_an_address_share_the_tokens_for_their_packets(self):
        origins = Origins(AddressLimits(packets=Rate(5, 5)), FREE)
        one, other = (origins.enter(host, 0.0) for host in ("192.0.2.1", "::ffff:192.0.2.1"))
        self.assertIs(one, other)
        self.assertIsNot(one, origins.enter("192.0.2.2", 0.0))

    def test_reconnecting_brings_no_new_tokens(self):
        origins = Origins(AddressLimits(packets=Rate(5, 5)), FREE)
        origin = origins.enter("192.0.2.1", 0.0)
        assert origin is not None
        assert origin.packets is not None
        origin.packets.take(5)
        origins.leave(origin)
        origins.forget(0.5)
        again = origins.enter("192.0.2.1", 0.5)
        assert again is not None
        assert again.packets is not None
        self.assertEqual(again.packets.available(0.5), 2)

    def test_who_is_denied_is_refused_first(self):
        origins = Origins(AddressLimits(), AccessList(deny=networks("192.0.2.0/24")))
        self.assertEqual(origins.refusal("192.0.2.1", 0.0), "denied")
        self.assertIsNone(origins.refusal("192.0.3.1", 0.0))
        self.assertEqual(len(origins), 0)

    def test_nothing_is_kept_of_an_address_that_has_used_up_nothing(self):
        origins = Origins(AddressLimits(connections=3, packets=Rate(5, 5)), FREE)
        for n in range(100):
            origin = origins.enter(f"192.0.2.{n}", 0.0)
            assert origin is not None
            assert origin.packets is not None
            origin.packets.take(5)
            origins.leave(origin)
        self.assertEqual(len(origins), 100)
        origins.forget(0.9)
        self.assertEqual(len(origins), 100)
        origins.forget(1.1)
        self.assertEqual(len(origins), 0)

    def test_what_is_kept_of_those_that_are_gone_is_bounded(self):
        self.patch(addresses, "MEMORY", 10)
        origins = Origins(AddressLimits(accepts=Rate(1, 1)), FREE)
        for n in range(100):
            origins.refusal(f"192.0.2.{n}", 0.0)
        self.assertEqual(len(origins), 10)
        self.assertEqual(origins.refusal("192.0.2.99", 0.0), "address_rate")
        self.assertIsNone(origins.refusal("192.0.2.0", 0.0))

    @given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
    @settings(deadline=None)
    def test_the_counts_are_those_of_the_connections(self, steps: list[tuple[int, bool]]):
        origins = Origins(AddressLimits(connections=3), FREE)
        there: dict[int, list[addresses.Origin]] = {n: [] for n in range(4)}
        for n, comes in steps:
            host = f"192.0.2.{n}"
            if not comes:
                if there[n]:
                    origins.leave(there[n].pop())
                continue
            refusal = origins.refusal(host, 0.0)
            self.assertEqual(refusal, "address_limit" if len(there[n]) >= 3 else None)
            if refusal is None:
                origin = origins.enter(host, 0.0)
                assert origin is not None
                there[n].append(origin)
        origins.forget(0.0)
        self.assertEqual(len(origins), sum(1 for each in there.values() if each))
