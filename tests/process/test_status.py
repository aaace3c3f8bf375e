"""Status: what operators are told of a server and its connections."""

from __future__ import annotations

import json
from typing import Any

from ccserver.config import Config
from ccserver.core.framing import CHECKSUM
from ccserver.errors import OperationFailed
from ccserver.process.selection import ConnectionFilter
from ccserver.process.status import server_status
from tests.process.fleets import AdministrationCase


def nobody(text: str) -> None:
    """The progress of what nobody waits for."""


class StatusTests(AdministrationCase):
    """The shape that docs/operating.md promises."""

    def status(self) -> Any:
        return self.successResultOf(self.administration.status())

    def test_it_says_all_that_is_promised_as_plain_values(self):
        self.administered()
        self.turn(3)
        status = json.loads(json.dumps(self.status()))
        self.assertEqual(
            {key: status[key] for key in ("config", "state", "doing", "generation", "uptime")},
            {"config": "a.conf", "state": "serving", "doing": "", "generation": 1, "uptime": 3.0},
        )
        self.assertEqual(status["listening"], [f"127.0.0.1:{self.ports[0]}"])
        self.assertEqual(status["last_reload"], {"result": None, "reason": "", "ago": None})
        self.assertEqual((status["handed_over"], status["left"]), (0, {}))
        self.assertEqual((status["refused"], status["closed"]), ({}, {}))
        self.assertIsInstance(status["compiled"], bool)
        self.assertEqual(status["checksum"], CHECKSUM)
        self.assertEqual(status["certificates"], [])
        self.assertIsInstance(status["version"], str)
        self.assertEqual(len(status["workers"]), 2)

    def test_a_worker_s_row(self):
        self.administered()
        self.turn(2)
        figures = {"packets": 100, "packets_per_second": 50.0}
        figures |= {"remnants": 2, "lane_packets": 3, "pool_queue": 4, "pool_threads": 20}
        self.workers()[1].beat(connections=5, memory=1 << 20, secret="no", **figures)
        self.assertEqual(
            self.status()["workers"][1],
            {
                "slot": 1,
                "pid": 1001,
                "state": "ready",
                "generation": 1,
                "age": 2.0,
                "connections": 5,
                "restarts": 0,
                "memory": 1 << 20,
                "lag_ms": None,
                "overloaded": None,
                **figures,
            },
        )

    def test_a_place_that_waits_for_its_next_worker_has_the_same_keys(self):
        self.administered()
        for _ in range(3):
            self.workers()[-1 if len(self.workers()) > 2 else 0].die()
            self.turn()
        ready, waiting = self.status()["workers"]
        self.assertEqual((waiting["state"], waiting["pid"]), ("waiting", None))
        self.assertEqual(set(waiting), set(ready))

    def test_a_worker_that_is_overloaded_is_told_so(self):
        self.administered()
        self.workers()[0].beat(overloaded=True, lag_ms=1500)
        row = self.status()["workers"][0]
        self.assertEqual((row["state"], row["lag_ms"]), ("overloaded", 1500))

    def test_counts_are_sums_of_all_workers(self):
        self.administered()
        first, second = self.workers()
        first.beat(refused={"full": 2}, closed={"idle": 1, "flood": 1}, dropped={"latest": 4})
        second.beat(refused={"full": 3}, closed={"idle": 5}, handler_errors=2)
        status = self.status()
        self.assertEqual(status["refused"], {"full": 5})
        self.assertEqual(status["closed"], {"idle": 6, "flood": 1})
        self.assertEqual((status["dropped"], status["handler_errors"]), ({"latest": 4}, 2))

    def test_restarts_are_counted(self):
        self.administered()
        self.workers()[0].die()
        self.turn()
        self.assertEqual([row["restarts"] for row in self.status()["workers"]], [1, 0])

    def test_what_is_going_on(self):
        administration = self.administered()
        upgrade = administration.upgrade(nobody)
        status = self.status()
        self.assertEqual((status["state"], status["doing"]), ("upgrading", "starting a new master"))
        self.succession.done.errback(OperationFailed("no"))
        self.refusal(upgrade)
        self.assertEqual((self.status()["state"], self.status()["doing"]), ("serving", ""))
        for begin, state in (
            (administration.reload, "reloading"),
            (lambda progress: administration.set_workers(3, progress), "scaling"),
        ):
            begun = begin(nobody)
            self.assertEqual(self.status()["state"], state)
            self.did(begun)

    def test_while_it_stops_how_many_connections_are_left(self):
        administration = self.administered()
        self.workers()[0].beat(connections=17)
        administration.begin_stop()
        status = self.status()
        self.assertEqual((status["state"], status["doing"]), ("stopping", "17 connections left"))

    def test_how_the_last_reload_went(self):
        administration = self.administered()
        self.did(administration.reload(nobody))
        self.turn(4)
        told = self.status()["last_reload"]
        self.assertEqual((told["result"], told["reason"]), ("ok", ""))
        self.assertGreaterEqual(told["ago"], 4)
        self.write(0)
        self.refusal(administration.reload(nobody))
        self.assertEqual(
            self.status()["last_reload"],
            {"result": "failed", "reason": "WorkerProcesses = 0 needs a restart", "ago": 0.0},
        )

    def test_a_failure_without_a_text_is_a_failure_too(self):
        administration = self.administered()

        def fail(*args: Any) -> Any:
            raise ZeroDivisionError

        self.patch(self.fleet, "prepare", fail)
        self.failureResultOf(administration.reload(nobody), ZeroDivisionError)
        self.flushLoggedErrors(ZeroDivisionError)
        told = self.status()["last_reload"]
        self.assertEqual((told["result"], told["reason"]), ("failed", "ZeroDivisionError"))


class CertificateTests(AdministrationCase):
    TEXT = "Listen = 10.0.0.1:1 tls, 10.0.0.1:2, [::1]:3 tls proxy\nProxyFrom = ::1\n"
    NOW = 1_800_000_000.0

    def told(self, *ends: dict[str, float]) -> Any:
        """The certificates, where these workers have such."""
        config = Config.parse(f"{self.TEXT}TlsCertificate = /a.pem, /b.pem\n")
        figures = [{"certificates": each} for each in ends]
        return server_status(config, (), [*figures, {}], lambda: self.NOW)["certificates"]

    def test_each_has_its_listeners_and_its_end(self):
        first, second = self.told({"/a.pem": self.NOW + 86400 * 29.58, "/b.pem": self.NOW - 1})
        self.assertEqual(
            first,
            {
                "path": "/a.pem",
                "listening": ["10.0.0.1:1", "[::1]:3"],
                "not_after": "2027-02-13T21:55:12Z",
                "days_left": 29.5,
            },
        )
        self.assertEqual((second["path"], second["not_after"]), ("/b.pem", "2027-01-15T07:59:59Z"))

    def test_days_are_negative_from_the_end_on_and_not_before(self):
        for seconds, days in ((8641, 0.1), (1, 0.0), (0, 0.0), (-1, -0.1), (-86400, -1.0)):
            (told,) = self.told({"/a.pem": self.NOW + seconds})
            self.assertEqual(told["days_left"], days)

    def test_as_long_as_one_worker_has_the_old_one_it_is_told(self):
        (told,) = self.told({"/a.pem": self.NOW + 86400}, {"/a.pem": self.NOW}, {"/a.pem": 9e9})
        self.assertEqual(told["days_left"], 0.0)

    def test_they_are_those_of_the_workers_that_serve(self):
        self.administered()
        self.workers()[0].beat(certificates={"/a.pem": self.NOW})
        status = self.successResultOf(self.administration.status())
        self.assertEqual([each["path"] for each in status["certificates"]], ["/a.pem"])
        self.assertNotIn("certificates", status["workers"][0])


class ConnectionTests(AdministrationCase):
    def rows(self, **filter: Any) -> Any:
        asked = self.administration.connections(ConnectionFilter(**filter), "id", 3)
        self.turn()
        return self.successResultOf(asked)

    def row(self, id: int, peer: str) -> dict[str, Any]:
        return {"id": id, "peer": peer, "server": "10.0.0.1:5678"}

    def setUp(self) -> None:
        super().setUp()
        self.administered()
        first, second = self.workers()
        first.end.rows = [self.row(id, f"10.0.0.{id}:5000") for id in (1, 5, 7)]
        second.end.rows = [self.row(id, f"10.0.0.{id}:5000") for id in (2, 3)]

    def test_those_of_all_workers_are_one_list(self):
        told = self.rows()
        self.assertEqual([row["id"] for row in told["connections"]], [1, 2, 3])
        self.assertEqual(told["total"], 5)
        self.assertEqual(
            [(row["worker"], row["pid"]) for row in told["connections"]],
            [(0, 1000), (1, 1001), (1, 1001)],
        )

    def test_they_are_filtered(self):
        self.assertEqual([row["id"] for row in self.rows(peer="10.0.0.5")["connections"]], [5])
        self.assertEqual([row["id"] for row in self.rows(worker=1)["connections"]], [2, 3])

    def test_a_worker_that_is_gone_or_does_not_answer_is_left_out(self):
        first, second = self.workers()
        first.end.holding.add("list")
        asked = self.administration.connections(ConnectionFilter(), "id", 10)
        self.turn(60)
        for each in (first, second):
            each.beat()
        self.assertEqual(self.successResultOf(asked)["total"], 2)
        second.unlink()
        first.end.holding.clear()
        self.assertEqual(self.rows()["total"], 3)

    def test_a_kick_finds_the_worker_that_has_it(self):
        for id, found in ((3, True), (9, False)):
            asked = self.administration.kick(id)
            self.turn()
            self.assertIs(self.successResultOf(asked), found)
