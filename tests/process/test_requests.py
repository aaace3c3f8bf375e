"""Control connections: requests, answers and what clients do wrong, without a socket."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from ccserver.errors import OperationFailed
from ccserver.process.operations import COMMANDS
from ccserver.process.requests import (
    LINE_LIMIT,
    PATIENCE,
    PROGRESS_LIMIT,
    ControlConnection,
    Credentials,
)
from ccserver.process.selection import ConnectionFilter
from tests.process.operators import FakeOperations
from tests.support import FakeReactor, FakeTransport, logged, texts


class Client:
    """A client of a control connection."""

    def __init__(self) -> None:
        self.operations = FakeOperations()
        self.clock = FakeReactor()
        self.gone: list[ControlConnection] = []
        self.protocol = ControlConnection(
            self.operations, self.clock, Credentials(77, 5, 5), self.gone.append
        )
        self.transport = FakeTransport()
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> list[Any]:
        """The lines that come back at once."""
        self.protocol.dataReceived(data)
        return self.lines()

    def ask(self, command: str, **arguments: Any) -> list[Any]:
        return self.send(json.dumps({"command": command, **arguments}).encode() + b"\n")

    def lines(self) -> list[Any]:
        """What has come since the last call."""
        data = self.transport.value()
        self.transport.clear()
        assert not data or data.endswith(b"\n")
        return [json.loads(line) for line in data.splitlines()]


class RequestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.client = Client()
        self.operations = self.client.operations

    def error(self, command: str, **arguments: Any) -> str:
        [answer] = self.client.ask(command, **arguments)
        self.assertEqual(list(answer), ["error"])
        return str(answer["error"])


class CommandTests(RequestCase):
    def test_each_command_asks_for_its_operation(self):
        for command, arguments, asked in [
            ("status", {}, ("status",)),
            ("kick", {"id": 9}, ("kick", 9)),
            ("certificates", {}, ("certificates",)),
            ("reopen", {}, ("reopen",)),
            ("stop", {"graceful": True}, ("stop", True)),
            ("log_level", {"level": 8}, ("log_level", 8)),
            ("reload", {}, ("reload",)),
            ("upgrade", {}, ("upgrade",)),
            ("rebalance", {}, ("rebalance",)),
            ("workers", {"count": 3}, ("workers", 3)),
        ]:
            client = Client()
            client.ask(command, **arguments)
            self.assertEqual(client.operations.asked, [asked])

    def test_the_answers_that_are_there_at_once(self):
        self.assertEqual(self.client.ask("status"), [{"result": {"pid": 17}}])
        self.assertEqual(self.client.ask("kick", id=7), [{"result": {"kicked": True}}])
        self.assertEqual(self.client.ask("kick", id=8), [{"result": {"kicked": False}}])
        self.assertEqual(self.client.ask("reopen"), [{"result": {}}])
        self.assertEqual(self.client.ask("stop", graceful=False), [{"result": {}}])

    def test_connections_are_asked_for_with_all_or_with_nothing_given(self):
        self.client.ask("connections")
        self.client.ask(
            "connections", peer="10.0.0.0/8", server=":80", worker=2, sort="age", limit=5
        )
        self.assertEqual(
            self.operations.asked,
            [
                ("connections", ConnectionFilter(), "id", 100),
                ("connections", ConnectionFilter("10.0.0.0/8", ":80", 2), "age", 5),
            ],
        )

    def test_an_argument_given_as_null_is_one_not_given(self):
        self.client.ask("connections", peer=None, sort=None)
        self.assertEqual(self.operations.asked[0], ("connections", ConnectionFilter(), "id", 100))

    def test_wrong_arguments_are_told_and_nothing_is_done(self):
        for command, arguments, told in [
            ("nonsense", {}, "unknown command 'nonsense'"),
            ("status", {"now": 1}, "status has no argument 'now'"),
            ("kick", {}, "kick: id must be a whole number from 0"),
            ("kick", {"id": "7"}, "kick: id must be"),
            ("kick", {"id": True}, "kick: id must be"),
            ("kick", {"id": 1.0}, "kick: id must be"),
            ("kick", {"id": -1}, "kick: id must be"),
            ("workers", {"count": 0}, "workers: count must be a whole number from 1 to 256"),
            ("log_level", {"level": 9}, "log_level: level must be a whole number from 0 to 8"),
            ("stop", {"graceful": 1}, "stop: graceful must be true or false"),
            ("connections", {"sort": "size"}, "connections: sort must be one of id, age"),
            ("connections", {"sort": []}, "connections: sort must be"),
            ("connections", {"limit": 100.0}, "connections: limit must be"),
            ("connections", {"limit": 10**6}, "connections: limit must be"),
            ("connections", {"worker": 256}, "connections: worker must be"),
            ("connections", {"peer": "x" * 201}, "connections: peer must be a text of"),
            ("connections", {"peer": "nobody"}, "not an address, network or port"),
        ]:
            self.assertIn(told, self.error(command, **arguments))
        self.assertEqual(self.operations.asked, [])

    def test_what_changes_something_is_logged_with_who_asked(self):
        events = logged(self)
        self.client.ask("kick", id=7)
        self.client.ask("status")
        self.client.ask("connections")
        self.assertEqual(texts(events), ["kick asked for by uid 5, pid 77"])

    def test_a_refusal_is_its_text_and_not_logged(self):
        self.operations.error = OperationFailed("not now")
        events = logged(self)
        self.assertEqual(self.error("status"), "not now")
        self.assertEqual(events, [])

    def test_any_other_exception_is_a_bug_told_to_the_log(self):
        self.operations.error = KeyError("secret")
        self.assertIn("internal error", self.error("status"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.operations.error = None
        self.assertEqual(self.client.ask("status"), [{"result": {"pid": 17}}])

    def test_an_answer_that_is_no_json_is_a_bug_told_to_the_log(self):
        self.operations.state = {"pid": object()}
        self.assertIn("internal error", self.error("status"))
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_what_is_sent_is_ascii_on_one_line(self):
        self.operations.state = {"doing": "a\nb\x1b[2Jé\udc80"}
        self.client.protocol.dataReceived(b'{"command":"status"}\n')
        sent = self.client.transport.value()
        self.assertEqual(sent.count(b"\n"), 1)
        self.assertTrue(sent.isascii())
        self.assertEqual(json.loads(sent)["result"], self.operations.state)


class LongCommandTests(RequestCase):
    def setUp(self) -> None:
        super().setUp()
        self.begun = self.client.ask("reload")

    def test_it_is_accepted_at_once_and_answered_at_its_end(self):
        self.assertEqual(self.begun, [{"accepted": True}])
        self.operations.running[0].callback({"generation": 2})
        self.assertEqual(self.client.lines(), [{"result": {"generation": 2}}])

    def test_its_failure_is_the_answer(self):
        self.operations.running[0].errback(OperationFailed("port taken"))
        self.assertEqual(self.client.lines(), [{"error": "port taken"}])

    def test_its_progress_comes_before(self):
        self.operations.progress("loading")
        self.operations.progress("x" * (PROGRESS_LIMIT + 1))
        self.assertEqual(
            self.client.lines(), [{"progress": "loading"}, {"progress": "x" * PROGRESS_LIMIT}]
        )

    def test_progress_after_the_end_is_told_to_nobody(self):
        late = self.operations.progress
        self.operations.running[0].callback({})
        self.client.ask("upgrade")
        self.client.lines()
        late("still at it")
        self.assertEqual(self.client.lines(), [])

    def test_a_client_that_goes_changes_nothing(self):
        self.client.transport.lose(ConnectionDone())
        self.operations.progress("half")
        self.operations.running[0].callback({})
        self.assertEqual(self.client.lines(), [])
        self.assertEqual(self.client.gone, [self.client.protocol])
        self.assertEqual(self.client.clock.getDelayedCalls(), [])

    def test_a_bug_is_logged_though_the_client_has_gone(self):
        self.client.transport.lose(ConnectionDone())
        self.operations.running[0].errback(KeyError("bug"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_further_requests_wait_for_its_end(self):
        self.assertEqual(self.client.ask("status"), [])
        self.operations.running[0].callback({})
        self.assertEqual(self.client.lines(), [{"result": {}}, {"result": {"pid": 17}}])

    def test_too_much_that_waits_closes_the_connection(self):
        for _ in range(LINE_LIMIT // 20):
            self.client.protocol.dataReceived(b'{"command":"status"}\n')
        self.assertEqual(self.client.lines(), [{"error": f"more than {LINE_LIMIT} bytes at once"}])
        self.assertTrue(self.client.transport.closing)
        self.operations.running[0].callback({})
        self.assertEqual(self.client.lines(), [])

    def test_a_client_that_has_only_closed_its_side_gets_the_answer(self):
        self.client.protocol.readConnectionLost()
        self.assertFalse(self.client.transport.closing)
        self.operations.running[0].callback({})
        self.assertEqual(self.client.lines(), [{"result": {}}])
        self.assertTrue(self.client.transport.closing)

    def test_who_waits_for_an_answer_may_be_silent(self):
        self.client.clock.advance(100 * PATIENCE)
        self.assertFalse(self.client.transport.aborted)
        self.operations.running[0].callback({})
        self.client.clock.advance(PATIENCE)
        self.assertTrue(self.client.transport.aborted)


class ClientTests(RequestCase):
    def test_several_requests_in_one_go_are_answered_in_their_order(self):
        lines = b"".join(b'{"command":"kick","id":%d}\r\n' % number for number in range(300))
        answers = self.client.send(lines)
        self.assertEqual(len(answers), 300)
        self.assertEqual(answers.index({"result": {"kicked": True}}), 7)

    def test_a_request_may_come_byte_by_byte(self):
        for byte in b'{"command":"kick","id":7}':
            self.assertEqual(self.client.send(bytes([byte])), [])
        self.assertEqual(self.client.send(b"\n"), [{"result": {"kicked": True}}])

    def test_empty_lines_are_passed_over(self):
        self.assertEqual(self.client.send(b"\n \r\n\t\n"), [])

    def test_what_is_no_request_is_an_error_and_the_next_one_is_answered(self):
        self.assertEqual(self.client.send(b"status\n"), [{"error": "not a line of JSON"}])
        for line in (b"[1]", b"null", b"7", b"{}", b'{"command":["status"]}'):
            [answer] = self.client.send(line + b"\n")
            self.assertIn("not a request", answer["error"])
        [answer] = self.client.send(b"[" * 10_000 + b"\n")
        self.assertEqual(answer, {"error": "not a line of JSON"})
        self.assertEqual(self.client.ask("status"), [{"result": {"pid": 17}}])

    def test_a_line_that_does_not_end_closes_the_connection(self):
        self.assertEqual(self.client.send(b"x" * LINE_LIMIT), [])
        self.assertEqual(
            self.client.send(b"x"), [{"error": f"more than {LINE_LIMIT} bytes at once"}]
        )
        self.assertTrue(self.client.transport.closing)
        self.assertEqual(self.client.send(b'\n{"command":"status"}\n'), [])

    def test_a_long_line_closes_the_connection_though_it_ends(self):
        answers = self.client.send(b"x" * (LINE_LIMIT + 1) + b'\n{"command":"status"}\n')
        self.assertEqual(answers, [{"error": f"more than {LINE_LIMIT} bytes at once"}])
        self.assertTrue(self.client.transport.closing)

    def test_a_silent_client_is_closed_at_the_deadline_not_before(self):
        self.client.clock.advance(PATIENCE - 0.5)
        self.client.ask("status")
        self.client.clock.advance(PATIENCE - 0.5)
        self.assertFalse(self.client.transport.aborted)
        self.client.clock.advance(0.5)
        self.assertTrue(self.client.transport.aborted)

    def test_a_trickle_of_bytes_does_not_put_the_deadline_off(self):
        for _ in range(10):
            self.client.clock.advance(PATIENCE / 10)
            self.client.protocol.dataReceived(b"x")
        self.assertTrue(self.client.transport.aborted)

    def test_a_client_that_does_not_read_is_asked_nothing_more_and_closed(self):
        self.client.transport.limit = 100
        self.client.send(b"")
        for _ in range(50):
            self.client.protocol.dataReceived(b'{"command":"status"}\n')
        self.assertLess(len(self.operations.asked), 10)
        self.client.clock.advance(PATIENCE)
        self.assertTrue(self.client.transport.aborted)

    def test_a_client_that_reads_again_gets_what_it_asked_for(self):
        self.client.protocol.pauseProducing()
        self.assertEqual(self.client.ask("status"), [])
        self.client.protocol.resumeProducing()
        self.assertEqual(self.client.lines(), [{"result": {"pid": 17}}])

    def test_a_client_that_does_not_read_misses_progress_not_the_result(self):
        self.client.ask("reload")
        self.client.protocol.pauseProducing()
        self.operations.progress("half")
        self.operations.running[0].callback({})
        self.assertEqual(self.client.lines(), [{"result": {}}])

    def test_a_client_that_is_done_is_closed(self):
        self.client.protocol.readConnectionLost()
        self.assertTrue(self.client.transport.closing)
        self.client.transport.turn()
        self.assertEqual(self.client.gone, [self.client.protocol])

    def test_one_that_does_not_take_the_last_answer_is_cut_off(self):
        self.client.protocol.close()
        self.client.clock.advance(PATIENCE)
        self.assertTrue(self.client.transport.aborted)


WORDS = st.sampled_from([*COMMANDS, "command", "id", "level", "count", "sort", "peer"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
REQUESTS = st.dictionaries(WORDS, VALUES, max_size=4).map(lambda it: json.dumps(it).encode())


class PropertyTests(SynchronousTestCase):
    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.binary(max_size=60) | REQUESTS | st.just(b"\n"), max_size=12))
    def test_any_bytes_are_answered_by_lines_and_never_by_an_exception(self, chunks):
        client = Client()
        for chunk in chunks:
            for answer in client.send(chunk):
                self.assertEqual(len(answer), 1)
                self.assertIn(next(iter(answer)), ("accepted", "error", "result"))
        lines = b"".join(chunks).count(b"\n")
        self.assertLessEqual(len(client.operations.asked), lines)
        self.assertEqual(self.flushLoggedErrors(), [])
