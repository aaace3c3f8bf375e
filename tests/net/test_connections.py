"""The connection table: ids, the limit, the counts and the heartbeat."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.counts import Counts
from ccserver.core.framing import encode
from ccserver.core.limits import Heartbeat, SessionLimits
from ccserver.core.session import CloseReason, Session
from ccserver.net.connections import LINES_PER_SECOND, Connections


class Connection:
    """What the table needs of one, remembering what it is told."""

    def __init__(self, table: Connections, now: float = 0.0) -> None:
        self.session = Session(table.next_id(), "peer", "server", SessionLimits(), now)
        self.told: list[object] = []
        self.idle = True
        self.deaf = self.paused = False

    def finish(self) -> None:
        self.told.append("finish")

    def close(self, reason: CloseReason) -> None:
        self.told.append(reason)

    def abort(self) -> None:
        self.told.append("abort")


class ConnectionsCase(SynchronousTestCase):
    def table(
        self, limit: int = 10, number: int = 0, heartbeat: Heartbeat | None = None
    ) -> Connections:
        self.clock = Clock()
        self.counts = Counts()
        return Connections(limit, number, self.counts, self.clock.seconds, heartbeat)

    def filled(self, table: Connections, count: int) -> list[Connection]:
        connections = [Connection(table, self.clock.seconds()) for _ in range(count)]
        for connection in connections:
            table.add(connection)
        return connections


class TableTests(ConnectionsCase):
    def test_it_is_full_at_its_limit(self):
        table = self.table(limit=2)
        first, _ = self.filled(table, 2)
        self.assertTrue(table.full)
        table.remove(first)
        self.assertFalse(table.full)
        self.assertEqual(len(table), 1)

    def test_ids_are_never_used_again(self):
        table = self.table()
        seen = set()
        for _ in range(100):
            (connection,) = self.filled(table, 1)
            seen.add(connection.session.id)
            table.remove(connection)
        self.assertEqual(len(seen), 100)

    def test_processes_do_not_share_ids(self):
        tables = [self.table(number=number) for number in range(100)]
        ids = [table.next_id() for table in tables for _ in range(100)]
        self.assertEqual(len(set(ids)), 100 * 100)

    def test_ids_are_64_bits_for_millions_of_processes(self):
        self.assertLess(self.table(number=(1 << 24) - 1).next_id(), 1 << 64)

    def test_who_goes_is_counted_under_his_reason(self):
        table = self.table()
        one, other = self.filled(table, 2)
        one.session.stop(CloseReason.FLOOD)
        table.remove(one)
        table.remove(other)
        self.assertEqual(self.counts.closed, {"flood": 1, "client_reset": 1})

    def test_connections_may_go_while_one_looks_at_them(self):
        table = self.table()
        self.filled(table, 5)
        for connection in table:
            table.remove(connection)
        self.assertEqual(len(table), 0)

    def test_finish_is_told_to_all_and_remembered(self):
        table = self.table()
        connections = self.filled(table, 3)
        self.assertFalse(table.draining)
        table.finish()
        self.assertEqual([connection.told for connection in connections], [["finish"]] * 3)
        self.assertTrue(table.draining)

    def test_a_spread_ends_the_idle_ones_one_after_the_other(self):
        table = self.table()
        connections = self.filled(table, 4)
        table.finish(8.0)
        ended = []
        for _ in range(4):
            ended.append([len(connection.told) for connection in connections])
            self.clock.advance(2)
            table.finish_due()
        self.assertEqual(ended, [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
        table.finish_due()
        self.assertEqual([connection.told for connection in connections], [["finish"]] * 4)

    def test_who_has_something_to_answer_does_not_wait_for_his_turn(self):
        table = self.table()
        *idle, busy = self.filled(table, 4)
        busy.idle = False
        table.finish(8.0)
        self.assertEqual(busy.told, ["finish"])
        self.assertEqual(idle[-1].told, [])

    def test_who_goes_before_his_turn_is_not_told(self):
        table = self.table()
        _, gone = self.filled(table, 2)
        table.finish(8.0)
        table.remove(gone)
        self.clock.advance(8)
        table.finish_due()
        self.assertEqual(gone.told, [])

    def test_a_second_call_without_a_spread_ends_all_at_once(self):
        table = self.table()
        connections = self.filled(table, 4)
        table.finish(8.0)
        table.finish()
        self.assertTrue(all(connection.told for connection in connections))

    def test_one_that_cannot_be_finished_is_cut_and_keeps_no_other_from_its_end(self):
        table = self.table()
        bad, good = self.filled(table, 2)
        bad.finish = lambda: 1 / 0
        table.finish()
        self.assertEqual((bad.told, good.told), (["abort"], ["finish"]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_packets_are_those_of_all_connections_that_were_here(self):
        table = self.table()
        gone, here = self.filled(table, 2)
        for connection in (gone, here, here):
            connection.session.decoder.feed(encode(1, b"x"))
        table.remove(gone)
        self.assertEqual(table.received(), 3)

    def test_but_not_those_that_others_have_received(self):
        source, target = self.table(), self.table()
        (moved,) = self.filled(source, 1)
        moved.session.decoder.feed(encode(1, b"x"))
        source.take_out(moved)
        target.add(moved)
        moved.session.decoder.feed(encode(1, b"y") * 2)
        self.assertEqual((source.received(), target.received()), (1, 2))
        target.take_out(moved)
        self.assertEqual(target.received(), 2)

    def test_a_connection_is_found_by_its_id(self):
        table = self.table()
        (connection,) = self.filled(table, 1)
        self.assertIs(table.get(connection.session.id), connection)
        self.assertIsNone(table.get(0))

    def test_a_line_says_how_many_before_it_were_suppressed(self):
        table = self.table()
        said = [table.admit_line("idle") for _ in range(LINES_PER_SECOND + 2)]
        self.assertEqual(said, [""] * LINES_PER_SECOND + [None] * 2)
        self.clock.advance(1)
        self.assertEqual(table.admit_line("idle"), " (2 more such lines suppressed)")

    def test_abort_is_told_to_all(self):
        table = self.table()
        connections = self.filled(table, 3)
        table.abort()
        self.assertEqual([connection.told for connection in connections], [["abort"]] * 3)


class HeartbeatTests(ConnectionsCase):
    def tick(self, table: Connections, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            table.check_heartbeats()

    def test_the_silent_ones_are_closed(self):
        table = self.table(heartbeat=Heartbeat(5))
        silent, loud = self.filled(table, 2)
        for _ in range(8):
            loud.session.heard = self.clock.seconds()
            self.tick(table, 4)
        self.assertIn(CloseReason.IDLE, silent.told)
        self.assertEqual(loud.told, [])

    def test_not_before_their_time(self):
        table = self.table(heartbeat=Heartbeat(5))
        (silent,) = self.filled(table, 1)
        self.tick(table, 25)
        self.assertEqual(silent.told, [])
        self.tick(table, 2)
        self.assertEqual(silent.told, [CloseReason.IDLE])

    def test_kick_closes_a_new_one_only_after_the_interval(self):
        table = self.table(heartbeat=Heartbeat(5, kick=True))
        self.clock.advance(0.7)
        (connection,) = self.filled(table, 1)
        self.tick(table, 4)
        self.assertEqual(connection.told, [])
        self.tick(table, 2)
        self.assertEqual(connection.told, [CloseReason.IDLE])

    def test_who_was_not_listened_to_is_not_silent(self):
        table = self.table(heartbeat=Heartbeat(5))
        (unheard,) = self.filled(table, 1)
        unheard.deaf = True
        self.tick(table, 100)
        self.assertEqual(unheard.told, [])
        unheard.deaf = False
        self.tick(table, 40)
        self.assertIn(CloseReason.IDLE, unheard.told)

    def test_who_ends_in_order_is_not_silent(self):
        for kick in (False, True):
            table = self.table(heartbeat=Heartbeat(5, kick))
            (ending,) = self.filled(table, 1)
            ending.session.end_of_stream()
            self.tick(table, 100)
            self.assertEqual(ending.told, [])

    def test_who_has_gone_is_not_closed(self):
        table = self.table(heartbeat=Heartbeat(5, kick=True))
        (gone,) = self.filled(table, 1)
        table.remove(gone)
        self.tick(table, 20)
        self.assertEqual(gone.told, [])

    def test_without_a_heartbeat_nobody_is(self):
        table = self.table()
        (silent,) = self.filled(table, 1)
        self.tick(table, 1000)
        self.assertEqual(silent.told, [])
