"""Penalties: how many wrong logins are let through, whom they hold up, and whom they never do."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import tests.properties  # noqa: F401
from ccserver.accounts.penalties import (
    QUIET,
    SITE,
    Allowance,
    Ledger,
    Penalties,
    network,
    site,
)
from ccserver.config import AccountsSettings

BOB, ANN = "bob", "ann"
HOME, CAFE = "192.0.2.1", "198.51.100.7"

SMALL = AccountsSettings(
    wrong_logins=3,
    wrong_login_delay=30.0,
    address_wrong_logins=6,
    address_wrong_login_delay=2.0,
    name_wrong_logins=9,
    name_wrong_login_delay=10.0,
    wrong_login_memory=16,
)

steps = st.lists(st.integers(0, 200), max_size=60)
"""Seconds from one login to the next."""

attacks = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([BOB, ANN, "eve"]), st.integers(1, 30)),
    max_size=120,
)
"""Seconds since the one before, the name, and the number of the address."""


def times(steps: list[int]) -> list[int]:
    return [sum(steps[: place + 1]) for place in range(len(steps))]


def attack(penalties: Penalties, attempts: list[tuple[int, str, int]], now: float = 0.0) -> float:
    """Wrong logins, as far as they are let through; the time behind them."""
    for seconds, name, number in attempts:
        now += seconds
        guess(penalties, name, f"203.0.113.{number}", now)
    return now


def guess(penalties: Penalties, name: str, address: str, now: float) -> bool:
    """Whether a wrong login is let through."""
    if penalties.refuses(name, address, now):
        return False
    penalties.failed(name, address, now)
    return True


class AllowanceTests(SynchronousTestCase):
    def admitted(self, count: int, delay: int, moments: list[int]) -> list[int]:
        allowance, due, let_through = Allowance(count, delay), 0.0, []
        for now in moments:
            if not allowance.is_spent(due, now):
                due = allowance.put_off(due, now)
                let_through.append(now)
        return let_through

    def test_so_many_at_once_then_one_every_delay(self):
        self.assertEqual(self.admitted(3, 10, [5] * 9), [5] * 3)
        self.assertEqual(self.admitted(3, 10, [0, 0, 0, *range(1, 41)]), [0] * 3 + [10, 20, 30, 40])

    def test_a_rest_restores_it_one_by_one(self):
        self.assertEqual(self.admitted(3, 10, [0, 0, 0, *[25] * 5]), [0] * 3 + [25] * 2)
        self.assertEqual(self.admitted(3, 10, [0, 0, 0, *[30] * 5]), [0] * 3 + [30] * 3)

    def test_0_is_no_limit(self):
        self.assertEqual(len(self.admitted(0, 10, [0] * 500)), 500)

    @given(st.integers(1, 8), st.integers(1, 60), steps)
    def test_no_span_of_time_has_more_than_its_share(self, count, delay, steps):
        let_through = self.admitted(count, delay, times(steps))
        for first, begin in enumerate(let_through):
            for last in range(first, len(let_through)):
                share = count + (let_through[last] - begin) // delay
                self.assertLessEqual(last - first + 1, share)

    @given(st.integers(1, 8), st.integers(1, 60), steps)
    def test_who_has_waited_the_delay_is_let_through_whatever_was_refused(
        self, count, delay, steps
    ):
        moments = times(steps)
        let_through = self.admitted(count, delay, moments)
        for now in moments:
            before = [moment for moment in let_through if moment < now]
            if not before or now - before[-1] >= delay:
                self.assertIn(now, let_through)


class LedgerTests(SynchronousTestCase):
    def test_each_key_has_its_own(self):
        ledger = Ledger(Allowance(1, 10), 9)
        ledger.add("a", 0)
        self.assertEqual([ledger.is_spent(key, 0) for key in "ab"], [True, False])

    @given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 40)), max_size=100))
    def test_it_remembers_the_latest_and_no_more_than_its_size(self, added):
        ledger, now, latest = Ledger(Allowance(1, 4000), 8), 0, {}
        for seconds, key in added:
            now += seconds
            ledger.add(key, now)
            latest.pop(key, None)
            latest[key] = now
            self.assertLessEqual(len(ledger), 8)
            for recent in [*latest][-8:]:
                if now - latest[recent] < 4000:
                    self.assertTrue(ledger.is_spent(recent, now))

    def test_what_is_quiet_is_forgotten(self):
        ledger = Ledger(Allowance(1, 10), 9)
        for key in range(5):
            ledger.add(key, key)
        ledger.add("late", QUIET + 10 + 3)
        self.assertEqual(len(ledger), 3)

    def test_it_is_quiet_long_after_the_due(self):
        ledger = Ledger(Allowance(1, 10), 9)
        ledger.add("a", 0)
        self.assertFalse(ledger.is_quiet("a", 10 + QUIET))
        self.assertTrue(ledger.is_quiet("a", 11 + QUIET))
        self.assertTrue(ledger.is_quiet("b", 0))


class PenaltiesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.penalties = Penalties(SMALL)

    def let_through(self, name: str, address: str, now: float = 0.0, attempts: int = 50) -> int:
        return sum(guess(self.penalties, name, address, now) for _ in range(attempts))

    def test_a_name_at_an_address(self):
        self.assertEqual(self.let_through(BOB, HOME), 3)
        self.assertEqual(self.let_through(BOB, HOME, 29.9), 0)
        self.assertEqual(self.let_through(BOB, HOME, 30.0), 1)

    def test_an_address_for_all_names(self):
        total = sum(self.let_through(f"name {number}", HOME) for number in range(20))
        self.assertEqual(total, 6)
        self.assertEqual(self.let_through("another", HOME, 2.0), 1)

    def test_a_name_at_all_addresses(self):
        total = [self.let_through(BOB, f"203.0.113.{number}") for number in range(20)]
        self.assertEqual(sum(total[:4]), 9 + 1)
        # then each address that is new to the name has one
        self.assertEqual(total[4:], [1] * 16)

    def test_other_names_at_other_addresses_are_not_concerned(self):
        self.let_through(BOB, HOME)
        self.assertFalse(self.penalties.refuses(ANN, CAFE, 0.0))
        self.assertFalse(self.penalties.refuses(ANN, HOME, 0.0))
        self.assertFalse(self.penalties.refuses(BOB, CAFE, 0.0))

    def test_a_success_forgives_nothing(self):
        self.let_through(BOB, HOME, attempts=2)
        self.penalties.succeeded(BOB, HOME)
        self.assertEqual(self.let_through(BOB, HOME), 1)
        for number in range(20):
            self.let_through(f"name {number}", HOME)
            self.penalties.succeeded("mine", HOME)
        self.assertTrue(self.penalties.refuses("another", HOME, 0.0))

    def test_an_unknown_address_is_not_held_against_all_who_have_none(self):
        for number in range(20):
            self.let_through(f"name {number}", "")
            self.penalties.succeeded(f"name {number}", "")
        self.assertFalse(self.penalties.refuses(BOB, "", 0.0))
        self.assertEqual(self.let_through(BOB, ""), 3)

    @given(attacks)
    def test_no_attack_from_elsewhere_keeps_the_owner_of_a_name_out(self, attempts):
        penalties = Penalties(SMALL)
        now = attack(penalties, attempts)
        self.assertFalse(penalties.refuses(BOB, HOME, now))
        penalties.succeeded(BOB, HOME)
        now = attack(penalties, attempts, now)
        self.assertTrue(guess(penalties, BOB, HOME, now))
        self.assertFalse(penalties.refuses(BOB, HOME, now))

    @given(attacks, st.integers(0, 5))
    def test_nor_does_one_on_other_names_from_where_he_was_in_before(self, more, wrong):
        penalties = Penalties(SMALL)
        penalties.succeeded(BOB, HOME)
        for place, (seconds, _, number) in enumerate(more):
            guess(penalties, f"name {number}", HOME, float(place + seconds))
        now = float(len(more) + 40)
        mistakes = [guess(penalties, BOB, HOME, now) for _ in range(wrong)]
        self.assertEqual(mistakes, [True] * min(wrong, 3) + [False] * (wrong - 3))

    @given(attacks)
    def test_waiting_always_helps(self, attempts):
        penalties = Penalties(SMALL)
        now = attack(penalties, attempts)
        for _, name, number in attempts:
            self.assertFalse(penalties.refuses(name, f"203.0.113.{number}", now + 30.0 * 120))

    @given(attacks)
    def test_what_is_remembered_is_bounded(self, attempts):
        penalties = Penalties(SMALL)
        attack(penalties, attempts)
        for number in range(40):
            penalties.succeeded(f"name {number}", HOME)
        ledgers = penalties._pairs, penalties._addresses, penalties._names, penalties._homes
        self.assertLessEqual(max(map(len, ledgers)), 16)

    def test_nothing_is_refused_without_limits(self):
        penalties = Penalties(
            AccountsSettings(wrong_logins=0, address_wrong_logins=0, name_wrong_logins=0)
        )
        for address in (HOME, customer(1)):
            self.assertTrue(all(guess(penalties, BOB, address, 0.0) for _ in range(500)))

    def test_the_defaults_do_not_hold_up_many_devices_behind_one_address(self):
        penalties = Penalties(AccountsSettings())
        # 50 of 500 have an old password and try it each second, for 10 minutes
        for second in range(600):
            for number in range(50):
                guess(penalties, f"old {number}", HOME, second)
            for number in range(second % 9, 450, 9):
                self.assertFalse(penalties.refuses(f"good {number}", HOME, second), second)
                penalties.succeeded(f"good {number}", HOME)


def customer(number: int, site: int = 0x1000) -> str:
    """A /64 of a /48 of IPv6, which has 65,536 of them."""
    return network(f"[2001:db8:{site:x}:{number:x}::5]:5000")


class SiteTests(SynchronousTestCase):
    """Who has a /48 of IPv6 has 65,536 addresses for nothing."""

    def setUp(self) -> None:
        self.penalties = Penalties(AccountsSettings())

    def guesses(self, addresses: list[str], now: float, name: str = BOB) -> int:
        """How many wrong logins, one from each of C{addresses}, are let through."""
        return sum(guess(self.penalties, name, address, now) for address in addresses)

    def test_its_addresses_have_so_many_guesses_at_a_name_and_not_one_each(self):
        through = sum(
            self.guesses([customer(second * 20 + number) for number in range(20)], float(second))
            for second in range(1000)
        )
        # 100 at once and one every 10 seconds are the name's, of all addresses together
        self.assertLessEqual(through, 100 + 100 + SITE + 5)
        self.assertGreaterEqual(through, 100 + 90)

    def test_they_have_so_many_guesses_at_all_names(self):
        through = sum(
            guess(self.penalties, f"name {number}", customer(number), 0.0)
            for number in range(20000)
        )
        self.assertEqual(through, 500 * SITE)

    def test_the_owner_at_another_site_is_not_held_up(self):
        self.guesses([customer(number) for number in range(5000)], 0.0)
        self.assertFalse(self.penalties.refuses(BOB, customer(1, site=0x1001), 0.0))

    def test_the_owner_at_the_same_site_is_not_held_up_where_he_was_in_before(self):
        self.penalties.succeeded(BOB, customer(7))
        self.guesses([customer(number) for number in range(100, 5000)], 0.0)
        self.assertFalse(self.penalties.refuses(BOB, customer(7), 0.0))

    def test_the_owner_at_the_same_site_as_few_mistakes_is_not_held_up(self):
        self.guesses([f"203.0.{number >> 8}.{number & 255}" for number in range(500)], 0.0)
        self.assertEqual(self.guesses([customer(number) for number in range(SITE - 1)], 0.0), 15)
        self.assertFalse(self.penalties.refuses(BOB, customer(100), 0.0))

    def test_an_hour_later_it_is_as_good_as_a_new_one(self):
        self.guesses([customer(number) for number in range(5000)], 0.0)
        self.assertTrue(self.penalties.refuses(BOB, customer(6000), 0.0))
        self.guesses([f"203.0.{number >> 8}.{number & 255}" for number in range(500)], QUIET)
        new = [customer(number) for number in range(10000, 10000 + 2 * SITE)]
        self.assertEqual(self.guesses(new, QUIET), SITE)

    def test_what_is_remembered_of_them_is_bounded(self):
        penalties = Penalties(SMALL)
        for number in range(200):
            guess(penalties, f"name {number}", customer(number, site=number), 0.0)
        self.assertLessEqual(max(len(penalties._sites), len(penalties._visits)), 16)

    def test_an_ipv4_address_has_none(self):
        self.assertEqual((site(HOME), site("")), (b"", b""))

    def test_it_is_the_first_48_bits(self):
        self.assertEqual(site(customer(5)), bytes.fromhex("20010db81000"))
        self.assertEqual(site(customer(0xFFFF)), site(customer(5)))
        self.assertEqual(site(network("[fe80::1%eth0]:5000")), b"\xfe\x80\0\0\0\0")


class NetworkTests(SynchronousTestCase):
    def test_of_an_ipv4_peer(self):
        self.assertEqual(network("192.0.2.1:5000"), "192.0.2.1")

    def test_an_ipv6_customer_has_64_bits(self):
        self.assertEqual(network("[2001:db8:1:2:3:4:5:6]:5000"), "2001:db8:1:2::")
        self.assertEqual(network("[fe80::1%eth0]:5000"), "fe80::")

    def test_a_mapped_ipv4_peer_is_the_ipv4_peer(self):
        self.assertEqual(network("[::ffff:192.0.2.1]:5000"), "192.0.2.1")

    def test_what_is_no_address_is_unknown(self):
        for peer in ("-", "", "host:5", "a:b:c:5"):
            self.assertEqual(network(peer), "")

    @given(st.text(max_size=40))
    def test_any_text_has_one(self, peer):
        self.assertIsInstance(network(peer), str)
