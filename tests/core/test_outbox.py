"""The outbox: bounded, in order, and each packet treated as its policy says."""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.outbox import JOINED, ROOM, Outbox, Overflow, SendLimits, Waiting

CLOSE, NEW, OLD, LATEST = Overflow
TIGHT = SendLimits(hard=100, soft=50, seconds=10, messages=8, total=150, total_messages=10)


class OutboxCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.waiting = Waiting()

    def outbox(self, **limits: Any) -> Outbox:
        values = {"hard": 0, "soft": 0, "messages": 0, "total": 0, "total_messages": 0}
        return Outbox(SendLimits(**{**values, **limits}), self.waiting)

    def fill(self, outbox: Outbox, *packets: bytes, overflow: Overflow = CLOSE) -> None:
        for packet in packets:
            self.assertTrue(outbox.push(packet, overflow))


class OrderTests(OutboxCase):
    def test_what_goes_in_comes_out_in_order(self):
        outbox = self.outbox()
        outbox.push(b"a", CLOSE)
        outbox.reply(b"b")
        outbox.push(b"c", LATEST, 1)
        self.assertEqual(outbox.take(100), [b"a", b"b", b"c"])
        self.assertEqual((outbox.bytes, outbox.messages, outbox.replies), (0, 0, 0))

    def test_portions_are_whole_packets(self):
        outbox = self.outbox()
        self.fill(outbox, b"aaa", b"bbb", b"ccc")
        self.assertEqual(outbox.take(4), [b"aaa", b"bbb"])
        self.assertEqual(outbox.take(1), [b"ccc"])
        self.assertEqual(outbox.take(1), [])

    def test_replies_that_follow_each_other_wait_as_one_up_to_a_length(self):
        outbox = self.outbox()
        outbox.push(b"push", CLOSE)
        for _ in range(JOINED // 8 + 1):
            outbox.reply(b"x" * 8)
        self.assertEqual(outbox.contents(), [b"push", b"x" * JOINED, b"x" * 8])
        outbox.push(b"push", CLOSE)
        outbox.reply(b"y")
        self.assertEqual(outbox.contents()[2:], [b"x" * 8, b"push", b"y"])
        self.assertEqual((outbox.bytes, outbox.replies), (JOINED + 17, JOINED + 9))

    def test_a_length_above_which_they_do_not(self):
        outbox = self.outbox()
        for size in (JOINED, 1, JOINED, JOINED - 1):
            outbox.reply(b"x" * size)
        self.assertEqual([len(data) for data in outbox.contents()], [JOINED, 1, JOINED, JOINED - 1])

    def test_small_replies_cost_little_more_than_their_bytes(self):
        outbox, waiting = self.outbox(), 65536
        reply = bytes(8)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            while outbox.bytes < waiting:
                outbox.reply(reply)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertLess(after - before, 1.2 * waiting)

    def test_contents_stay(self):
        outbox = self.outbox()
        self.fill(outbox, b"a", b"b")
        self.assertEqual((outbox.contents(), outbox.take(9)), ([b"a", b"b"], [b"a", b"b"]))


class LimitTests(OutboxCase):
    def test_as_many_bytes_as_the_hard_limit_are_no_overflow(self):
        outbox = self.outbox(hard=4)
        self.assertEqual([outbox.push(b"ab", CLOSE) for _ in range(3)], [True, True, False])
        self.assertEqual(outbox.bytes, 4)

    def test_more_packets_than_allowed_are_an_overflow(self):
        outbox = self.outbox(messages=3)
        self.assertEqual([outbox.push(b"a", CLOSE) for _ in range(4)], [True] * 3 + [False])

    def test_replies_are_no_packets_and_never_an_overflow(self):
        outbox = self.outbox(hard=4, messages=1)
        for _ in range(5):
            outbox.reply(b"ab")
        self.assertEqual((outbox.bytes, outbox.replies, outbox.messages), (10, 10, 0))
        self.assertFalse(outbox.push(b"", CLOSE), "their bytes count for who pushes")

    def test_all_outboxes_share_the_total(self):
        first, second = self.outbox(total=4), self.outbox(total=4)
        self.fill(first, b"abc")
        self.assertFalse(second.push(b"ab", CLOSE))
        self.assertTrue(second.push(b"a", CLOSE))
        self.assertFalse(first.push(b"a", CLOSE))
        first.clear()
        self.assertTrue(second.push(b"abc", CLOSE))
        self.assertEqual(self.waiting, Waiting(4, 2))

    def test_and_the_packets_of_all(self):
        first, second = self.outbox(total_messages=2), self.outbox(total_messages=2)
        self.fill(first, b"a", b"b")
        self.assertFalse(second.push(b"c", CLOSE))
        first.take(1)
        self.assertTrue(second.push(b"c", CLOSE))

    def test_zero_is_no_limit(self):
        outbox = self.outbox()
        self.fill(outbox, *[b"x" * 60000] * 1000)
        self.assertFalse(outbox.check(1e9))

    def test_above_the_soft_limit_for_too_long(self):
        outbox = self.outbox(soft=3, seconds=10)
        self.fill(outbox, b"abc")
        self.assertFalse(outbox.check(0))
        self.fill(outbox, b"d")
        self.assertFalse(outbox.check(1))
        self.assertFalse(outbox.check(11))
        self.assertTrue(outbox.check(11.1))

    def test_a_moment_below_it_begins_anew(self):
        outbox = self.outbox(soft=3, seconds=10)
        self.fill(outbox, b"abc", b"def")
        self.assertFalse(outbox.check(1))
        outbox.take(1)
        self.fill(outbox, b"ghi")
        self.assertFalse(outbox.check(12))
        self.assertFalse(outbox.check(22))
        self.assertTrue(outbox.check(22.1))

    def test_there_is_room_while_little_waits(self):
        outbox = self.outbox(hard=4 << 20, messages=400)
        self.assertTrue(outbox.has_room)
        self.fill(outbox, b"x" * ROOM)
        self.assertTrue(outbox.has_room)
        self.fill(outbox, b"x")
        self.assertFalse(outbox.has_room)
        outbox.take(1)
        self.fill(outbox, *[b"x"] * 199)
        self.assertFalse(outbox.has_room)
        outbox.take(1)
        self.assertTrue(outbox.has_room)

    def test_with_room_for_one_packet_there_is_none_while_it_waits(self):
        outbox = self.outbox(messages=1)
        self.assertTrue(outbox.has_room)
        self.fill(outbox, b"a")
        self.assertFalse(outbox.has_room)

    def test_a_client_that_takes_nothing_has_so_long_from_the_first_look(self):
        outbox = self.outbox(stall=30)
        self.assertFalse(outbox.stalled(0, 1000.0))
        self.assertFalse(outbox.stalled(0, 1030.0))
        self.assertTrue(outbox.stalled(0, 1030.1))

    def test_what_it_takes_gives_it_time_and_less_than_before_does_not(self):
        outbox = self.outbox(stall=30)
        for taken, now in (100, 0.0), (101, 10.0), (91, 20.0), (81, 30.0):
            self.assertFalse(outbox.stalled(taken, now))
        self.assertTrue(outbox.stalled(71, 40.1))


class PolicyTests(OutboxCase):
    def test_drop_new_lets_the_new_one_go(self):
        outbox = self.outbox(hard=100, soft=4)
        self.fill(outbox, b"ab", b"cd", b"ef", overflow=NEW)
        self.assertEqual(outbox.contents(), [b"ab", b"cd"])
        self.assertEqual(self.waiting.dropped, {"drop_new": 1})

    def test_drop_old_lets_as_many_old_ones_go_as_needed(self):
        outbox = self.outbox(hard=100, soft=4)
        self.fill(outbox, b"a", b"b", b"c", b"def", overflow=OLD)
        self.assertEqual(outbox.contents(), [b"c", b"def"])
        self.assertEqual(self.waiting.dropped, {"drop_old": 2})

    def test_drop_old_spares_what_may_not_be_dropped(self):
        outbox = self.outbox(hard=100, soft=4)
        self.fill(outbox, b"a", b"b")
        self.fill(outbox, b"N", overflow=NEW)
        self.fill(outbox, b"c", b"d", b"e", overflow=OLD)
        self.assertEqual(outbox.contents(), [b"a", b"b", b"N", b"e"])

    def test_one_that_would_not_fit_alone_goes_itself(self):
        outbox = self.outbox(hard=100, soft=4)
        self.fill(outbox, b"abc")
        self.fill(outbox, b"d", b"ef", overflow=OLD)
        self.assertEqual(outbox.contents(), [b"abc"])
        self.assertEqual(self.waiting.dropped, {"drop_old": 2})

    def test_latest_replaces_where_it_stands(self):
        outbox = self.outbox()
        outbox.push(b"a1", LATEST, "a")
        outbox.push(b"b1", LATEST, "b")
        outbox.push(b"must", CLOSE)
        outbox.push(b"a2 longer", LATEST, "a")
        self.assertEqual(outbox.contents(), [b"a2 longer", b"b1", b"must"])
        self.assertEqual(self.waiting.dropped, {"latest": 1})

    def test_a_key_that_changes_costs_nothing_but_its_own_place(self):
        class Key:
            number = 1

            def __hash__(self) -> int:
                return hash(self.number)

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Key) and other.number == self.number

        outbox, key = self.outbox(), Key()
        self.assertTrue(outbox.push(b"a", Overflow.LATEST, key))
        key.number = 2
        self.assertTrue(outbox.push(b"b", Overflow.LATEST, key))
        self.assertEqual(outbox.take(9), [b"a", b"b"])
        self.assertTrue(outbox.push(b"c", Overflow.LATEST, key))
        key.number = 1
        self.assertTrue(outbox.push(b"d", Overflow.LATEST, key))
        self.assertEqual(outbox.take(9), [b"c", b"d"])
        self.assertEqual((outbox.bytes, outbox.messages), (0, 0))

    def test_a_key_that_changes_each_time_leaves_nothing_behind(self):
        class Key:
            number = 0

            def __hash__(self) -> int:
                return self.number

        outbox, key = self.outbox(), Key()
        for _ in range(1000):
            outbox.push(bytes(100), LATEST, key)
            key.number += 1
            outbox.take(100)
        self.assertEqual((len(outbox._latest), outbox.messages), (0, 0))

    def test_a_key_that_cannot_be_compared_is_no_other(self):
        class Key:
            def __hash__(self) -> int:
                return 7

            def __eq__(self, other: object) -> bool:
                raise ValueError

        outbox = self.outbox()
        for packet in (b"a", b"b"):
            self.assertTrue(outbox.push(packet, LATEST, Key()))
        self.assertEqual(outbox.take(9), [b"a", b"b"])

    def test_latest_does_not_replace_what_has_left(self):
        outbox = self.outbox()
        outbox.push(b"a1", LATEST, "a")
        outbox.take(1)
        outbox.push(b"a2", LATEST, "a")
        self.assertEqual(outbox.contents(), [b"a2"])
        self.assertEqual(self.waiting.dropped, {})

    def test_latest_without_room_lets_old_ones_go(self):
        outbox = self.outbox(hard=100, soft=4)
        self.fill(outbox, b"xx", overflow=OLD)
        outbox.push(b"a1", LATEST, "a")
        outbox.push(b"a23", LATEST, "a")
        self.assertEqual(outbox.contents(), [b"a23"])
        outbox.push(b"b1", LATEST, "b")
        self.assertEqual(outbox.contents(), [b"b1"])
        outbox.push(b"a4", LATEST, "a")
        self.assertEqual(outbox.contents(), [b"b1", b"a4"])

    def test_latest_that_fits_nowhere_leaves_no_older_one_behind(self):
        outbox = self.outbox(hard=100, soft=4)
        outbox.push(b"a", LATEST, "a")
        outbox.push(b"too long", LATEST, "a")
        self.assertEqual((outbox.contents(), outbox.bytes), ([], 0))
        outbox.push(b"b", LATEST, "a")
        self.assertEqual(outbox.contents(), [b"b"])

    def test_what_may_be_dropped_leaves_room_for_what_may_not(self):
        outbox = self.outbox(hard=8, soft=4, messages=8)
        self.fill(outbox, *[b"x"] * 20, overflow=NEW)
        self.assertEqual(outbox.messages, 4)
        self.assertEqual([outbox.push(b"y", CLOSE) for _ in range(5)], [True] * 4 + [False])


class Model:
    """The rules again, without a thought for their cost."""

    def __init__(self, limits: SendLimits, others: list[Model]) -> None:
        self.limits = limits
        self.others = others
        self.items: list[tuple[bytes, Overflow | None, Any]] = []

    @property
    def size(self) -> int:
        return sum(len(data) for data, _, _ in self.items)

    @property
    def packets(self) -> int:
        return sum(overflow is not None for _, overflow, _ in self.items)

    def fits(self, size: int, most_bytes: int, most_packets: int) -> bool:
        return (
            self.size + size <= most_bytes
            and self.packets < most_packets
            and sum(other.size for other in self.others) + size <= self.limits.total
            and sum(other.packets for other in self.others) < self.limits.total_messages
        )

    def push(self, data: bytes, overflow: Overflow, key: Any) -> bool:
        limits, items = self.limits, self.items
        if overflow is CLOSE:
            if not self.fits(len(data), limits.hard, limits.messages):
                return False
            items.append((data, overflow, key))
            return True
        same = [item for item in items if item[1] is LATEST and item[2] == key]
        place = None
        if overflow is LATEST and same:
            place = items.index(same[0])
            items[place] = (b"", None, "place")
        fits = lambda: self.fits(len(data), limits.soft, limits.messages // 2)  # noqa: E731
        while not fits():
            old = [item for item in items if item[1] in (OLD, LATEST)]
            if overflow is NEW or not old:
                break
            items.remove(min(old, key=lambda item: item[0][:2]))
        if fits():
            if place is None:
                items.append((data, overflow, key))
            else:
                items[items.index((b"", None, "place"))] = (data, overflow, key)
        elif place is not None:
            items.remove((b"", None, "place"))
        return True

    def reply(self, data: bytes) -> None:
        if self.items and self.items[-1][1] is None:
            data = self.items.pop()[0] + data  # all are short here
        self.items.append((data, None, None))

    def take(self, size: int) -> list[bytes]:
        taken = []
        while self.items and size > 0:
            taken.append(self.items.pop(0)[0])
            size -= len(taken[-1])
        return taken


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.integers(0, 1),
            st.sampled_from(Overflow),
            st.integers(2, 40),
            st.integers(0, 2),
        ),
        st.tuples(st.just("reply"), st.integers(0, 1), st.integers(2, 40)),
        st.tuples(st.just("take"), st.integers(0, 1), st.integers(0, 60)),
        st.tuples(st.just("clear"), st.integers(0, 1)),
    ),
    max_size=60,
)


class ModelTests(SynchronousTestCase):
    @given(STEPS)
    @settings(deadline=None, max_examples=300)
    def test_it_agrees_with_the_rules_at_every_step(self, steps: list[Any]):
        waiting, models = Waiting(), list[Model]()
        boxes = [Outbox(TIGHT, waiting), Outbox(TIGHT, waiting)]
        models += [Model(TIGHT, models), Model(TIGHT, models)]
        for number, (step, which, *values) in enumerate(steps):
            outbox, model = boxes[which], models[which]
            if step == "push":
                overflow, size, key = values
                data = number.to_bytes(2, "big") + bytes(size - 2)
                self.assertEqual(
                    outbox.push(data, overflow, key), model.push(data, overflow, key), step
                )
            elif step == "reply":
                data = number.to_bytes(2, "big") + bytes(values[0] - 2)
                outbox.reply(data)
                model.reply(data)
            elif step == "take":
                self.assertEqual(outbox.take(values[0]), model.take(values[0]))
            else:
                outbox.clear()
                model.items.clear()
            for outbox, model in zip(boxes, models, strict=True):
                self.assertEqual(outbox.contents(), [data for data, _, _ in model.items])
                self.assertEqual((outbox.bytes, outbox.messages), (model.size, model.packets))
            self.assertEqual(waiting.bytes, sum(model.size for model in models))
            self.assertEqual(waiting.messages, sum(model.packets for model in models))
