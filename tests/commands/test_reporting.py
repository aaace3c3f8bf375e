"""C{ccserver status} and C{connections}: what they show of what the server says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import ccserver
from ccserver.commands import listing, main, reporting, tables
from ccserver.process import operations, selection
from ccserver.process.workers import WorkerState
from tests.commands.servers import CommandCase

WORKER = {
    "slot": 0,
    "pid": 101,
    "state": "ready",
    "generation": 3,
    "age": 3725,
    "connections": 1000,
    "packets_per_second": 1234.5,
    "packets": 99,
    "remnants": 0,
    "lane_packets": 5,
    "pool_queue": 2,
    "pool_threads": 20,
    "memory": 47 << 20,
    "lag_ms": 0,
    "overloaded": False,
    "restarts": 1,
}
CERTIFICATE = {
    "path": "/srv/game.pem",
    "listening": ["[::]:5678"],
    "not_after": "2027-01-02T03:04:05Z",
    "days_left": 29.5,
}
STATUS = {
    "version": "0.1.0",
    "pid": 100,
    "config": "/srv/etc/ccserver.conf",
    "state": "reloading",
    "doing": "handing over: 120 of 2000 connections",
    "generation": 3,
    "uptime": 93784,
    "compiled": True,
    "checksum": "isal",
    "listening": ["0.0.0.0:5678", "[::]:5678"],
    "workers": [WORKER, {**WORKER, "slot": 1, "pid": 102, "connections": 7, "restarts": 0}],
    "certificates": [CERTIFICATE, {**CERTIFICATE, "path": "/srv/b.pem", "days_left": -0.1}],
    "handed_over": 12,
    "left": {"tls": 3},
    "refused": {},
    "closed": {"idle": 2, "client_closed": 55},
    "dropped": {"latest": 40},
    "handler_errors": 3,
    "last_reload": {"result": "failed", "reason": "no such file", "ago": 12.3},
}
CONNECTION = {
    "id": 42,
    "worker": 1,
    "pid": 102,
    "peer": "[2001:db8:1234:5678:9abc:def0:1234:5678]:50000",
    "server": "[::]:5678",
    "seconds": 61,
    "idle": None,
    "packets_in": 10,
    "packets_out": 9,
    "bytes_in": 900,
    "bytes_out": 123456,
    "waiting": 1,
    "unsent": 0,
    "state": "idle",
}


class StatusTests(CommandCase):
    def test_what_a_person_sees(self):
        self.serve([{"result": STATUS}])
        self.assertEqual(
            self.output("status"),
            """\
ccserver 0.1.0, pid 100: reloading, up 1d02h
configuration /srv/etc/ccserver.conf, generation 3, with compiled part, checksum by isal
listening on 0.0.0.0:5678, [::]:5678
handing over: 120 of 2000 connections
last reload: failed, 12s ago: no such file

worker  pid  state  generation  connections  packets/s  lanes  pool  memory  restarts    age
     0  101  ready           3         1000       1234      5  2/20  47 MiB         1  1h02m
     1  102  ready           3            7       1234      5  2/20  47 MiB         0  1h02m
 total                                 1007       2469     10     4  94 MiB         1

certificate    listening  not after             days left
/srv/game.pem  [::]:5678  2027-01-02T03:04:05Z       29.5
/srv/b.pem     [::]:5678  2027-01-02T03:04:05Z    expired

handed over: 12 connections
not handed over: tls 3
closed connections: client_closed 55, idle 2
dropped packets to clients: latest 40
handlers have raised: 3 times
""",
        )

    def test_what_a_program_sees_is_what_the_server_said(self):
        self.serve([{"result": STATUS}])
        printed = self.output("status", "--json")
        self.assertEqual(json.loads(printed), STATUS)
        self.assertEqual(printed.count("\n"), 1)

    def test_one_worker_needs_no_total(self):
        self.serve([{"result": {"workers": [WORKER]}}])
        self.assertNotIn("total", self.output("status"))

    def test_two_workers_of_one_place_share_its_restarts(self):
        self.serve([{"result": {"workers": [WORKER, WORKER]}}])
        total = self.output("status").splitlines()[-1].split()
        self.assertEqual(total, ["total", "2000", "2469", "10", "4", "94", "MiB", "1"])

    def test_an_older_or_newer_server_can_be_shown(self):
        self.serve([{"result": {"workers": [{"slot": 0}, 7], "of_the_future": {}}}])
        printed = self.output("status")
        self.assertIn("ccserver -, pid -: -, up -", printed)
        self.assertIn("worker", printed)

    def test_nothing_that_steers_a_terminal_gets_through(self):
        bad = "\x1b[2J\r\n\x07\x7f\x9b\u202e"
        worker = dict.fromkeys(WORKER, bad)
        nasty = {
            **dict.fromkeys(STATUS, bad),
            "workers": [worker, worker],
            "listening": [bad],
            "certificates": [dict.fromkeys(CERTIFICATE, bad), {"listening": [bad]}],
            "left": {bad: bad},
            "last_reload": {"result": bad, "reason": bad, "ago": bad},
        }
        self.serve([{"result": nasty}], [{"result": nasty}])
        for arguments in (["status"], ["status", "--json"]):
            printed = self.output(*arguments)
            self.assertTrue(printed.replace("\n", "").isprintable(), printed)

    def test_watch_looks_again_until_it_is_interrupted(self):
        slept = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 2:
                raise KeyboardInterrupt

        self.patch(reporting, "sleep", sleep)
        for arguments, interval in ((["--watch"], 2.0), (["--watch", "0.5"], 0.5)):
            self.path += "x"
            slept.clear()
            server = self.serve([{"result": STATUS}], [{"result": {"pid": 9}}])
            printed = self.output("status", *arguments)
            self.assertIn("pid 100", printed)
            self.assertIn("\n\nccserver -, pid 9", printed)
            self.assertEqual((slept, len(server.requests)), ([interval] * 2, 2))

    def test_watch_as_json_is_a_line_each_time(self):
        def sleep(seconds: float) -> None:
            if len(server.requests) == 3:
                raise KeyboardInterrupt

        self.patch(reporting, "sleep", sleep)
        server = self.serve(*[[{"result": STATUS}]] * 3)
        lines = self.output("status", "--watch", "--json").splitlines()
        self.assertEqual([json.loads(line) for line in lines], [STATUS] * 3)

    def test_watch_ends_with_the_server(self):
        self.patch(reporting, "sleep", lambda seconds: None)
        self.serve([{"result": STATUS}])
        result = self.run_here("status", "--watch")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("the server has ended", result.stderr)

    def test_on_a_terminal_it_is_a_table_with_the_same_cells(self):
        for module in (tables, reporting):
            self.patch(module, "is_terminal", lambda: True)
        self.patch(tables, "terminal", wide_terminal)
        self.patch(reporting, "terminal", wide_terminal)
        self.patch(reporting, "sleep", interrupt)
        self.serve(*[[{"result": STATUS}]] * 2)
        for arguments in (["status"], ["status", "--watch"]):
            printed = self.output(*arguments)
            for word in ("pid 100", "packets/s", "1h02m", "2/20", "94 MiB", "client_closed 55"):
                self.assertIn(word, printed)


class ConnectionsTests(CommandCase):
    def test_what_a_person_sees(self):
        self.serve([{"result": {"connections": [CONNECTION], "total": 7}}])
        lines = self.output("connections").splitlines()
        self.assertEqual(
            lines[1].split(),
            [
                *("42", "1", "102", "[2001:db8:1234:5678:9abc:def0:1234:5678]:50000"),
                *("[::]:5678", "idle", "1m01s", "-", "10", "9", "900", "B", "121", "KiB"),
                *("1", "0", "B"),
            ],
        )
        self.assertEqual(lines[2], "1 of 7 connections")

    def test_without_any_there_is_no_table(self):
        self.serve([{"result": {"connections": [], "total": 7}}])
        self.assertEqual(self.output("connections", "--limit", "0"), "0 of 7 connections\n")

    def test_what_a_program_sees_is_what_the_server_said(self):
        answer = {"connections": [CONNECTION], "total": 1}
        self.serve([{"result": answer}])
        self.assertEqual(json.loads(self.output("connections", "--json")), answer)

    def test_what_is_asked_for(self):
        server = self.serve([{"result": {}}], [{"result": {}}])
        self.output("connections")
        self.output(
            *("connections", "--peer", "10.0.0.0/8", "--server", ":80"),
            *("--worker", "0", "--sort", "unsent", "--limit", "3"),
        )
        asked = {"command": "connections"}
        self.assertEqual(
            server.requests,
            [
                {**asked, "sort": "id", "limit": 100},
                {
                    **asked,
                    "peer": "10.0.0.0/8",
                    "server": ":80",
                    "worker": 0,
                    "sort": "unsent",
                    "limit": 3,
                },
            ],
        )

    def test_orders_and_bounds_are_the_servers(self):
        self.assertEqual(listing.SORTS, selection.SORTS)
        self.assertEqual(listing.MAX_CONNECTIONS, selection.MAX_CONNECTIONS)

    def test_kick_tells_those_that_are_not_there_and_closes_the_others(self):
        yes, no = [{"result": {"kicked": True}}], [{"result": {"kicked": False}}]
        server = self.serve(no, yes, no)
        self.assertEqual(self.complaint("kick", "5", "6", "7"), "no such connection: 5, 7")
        self.assertEqual([request["id"] for request in server.requests], [5, 6, 7])


class DocumentTests(SynchronousTestCase):
    """docs/operating.md tells what there is."""

    def setUp(self) -> None:
        self.text = (Path(ccserver.__file__).parents[1] / "docs" / "operating.md").read_text()

    def test_its_json_has_the_keys_that_are_shown(self):
        blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", self.text, re.S)]
        status, connections = blocks
        self.assertEqual(set(status), set(STATUS))
        self.assertEqual(set(status["workers"][0]), set(WORKER))
        self.assertEqual(set(status["certificates"][0]), set(CERTIFICATE))
        self.assertEqual(set(connections["connections"][0]), set(CONNECTION))

    def test_its_table_has_the_columns_that_are_shown(self):
        for column in reporting.WORKER_COLUMNS:
            self.assertIn(f"\n| {column.title} | `", self.text)

    def test_it_has_every_command(self):
        talking = set(main.commands) - {"call", "check", "start", "version", "log"}
        for name in [*talking, "log level"]:
            self.assertRegex(self.text, rf"\n\| `{name}[ `]")
        protocol = self.text.partition("## The protocol of the control socket")[2]
        for name in operations.COMMANDS:
            self.assertRegex(protocol, rf"(?m)^\|.*`{name}`.*\|$")

    def test_it_has_every_state_of_a_worker_and_each_has_its_colour(self):
        states = {"overloaded", "waiting", *(state.value for state in WorkerState)}
        for state in states:
            self.assertIn(f"\n| `{state}` | ", self.text)
        self.assertEqual(set(tables.STYLES), states)


class CellTests(SynchronousTestCase):
    def test_durations(self):
        for seconds, told in [
            (0, "0.0s"),
            (9.94, "9.9s"),
            (59.9, "59s"),
            (61, "1m01s"),
            (3600, "1h00m"),
            (90061, "1d01h"),
            (None, "-"),
            ("soon", "soon"),
            (-1, "-1"),
            (float("nan"), "nan"),
            (float("inf"), "inf"),
        ]:
            self.assertEqual(tables.duration(seconds), told)

    def test_sizes(self):
        for count, told in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1023 * 1024, "0.999 MiB"),
            (47 << 20, "47 MiB"),
            (123456, "121 KiB"),
            (5 << 40, "5120 GiB"),
            (None, "-"),
        ]:
            self.assertEqual(tables.size(count), told)

    @settings(max_examples=200, deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from([*STATUS, *WORKER, *CONNECTION, "connections", "total"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from([*WORKER, *CONNECTION]), inner, max_size=5)
                ),
            ),
        )
    )
    def test_whatever_a_server_says_is_shown_and_printable(self, found):
        for parts in (reporting.report(found), listing.listing(found)):
            for line in tables.plain(parts):
                self.assertTrue(line.isprintable(), line)
            tables.rendered(parts)


def wide_terminal() -> object:
    from rich.console import Console

    return Console(file=sys.stdout, width=200, force_terminal=True, color_system=None)


def interrupt(seconds: float) -> None:
    raise KeyboardInterrupt
