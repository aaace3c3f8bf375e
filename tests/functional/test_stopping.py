import os
import signal
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from ccserver.core.framing import encode
from tests.functional import apps
from tests.functional.server import ServerProcess, measured, wait_until
from tests.functional.stopwatch import Stopwatch

SOON = 1.5


class StopCase(SynchronousTestCase):
    workers: ClassVar = 2

    def serve(self, **options):
        server = ServerProcess(**{"workers": self.workers, **options})
        self.addCleanup(server.close)
        server.start()
        return server

    def clients(self, server, count, *packets):
        """Connections that have sent C{packets}."""
        clients = [server.connect() for _ in range(count)]
        for client in clients:
            self.addCleanup(client.close)
            if packets:
                client.send(*packets)
        return clients


class EndTests(StopCase):
    """What every stop leaves behind: nothing, and a status."""

    def stopped(self, number, status):
        server = self.serve()
        with server.connect() as client:
            client.ask(apps.PING)
        with Stopwatch(server) as watch:
            server.stop(number)
        name = signal.Signals(number).name
        measured(f"stop of {self.workers} idle workers by {name}, seconds", watch.elapsed)
        self.assertEqual(server.wait(), status)
        self.assertEqual(server.processes(), [])
        self.assertFalse(os.path.exists(server.path("twistd.pid")))
        self.assertTrue(server.is_port_free())
        self.assertNotIn("Traceback", server.log + server.stderr)
        self.assertNotIn("[alert]", server.log)
        self.assertLess(watch.seconds, SOON)

    def test_term(self):
        self.stopped(signal.SIGTERM, -signal.SIGTERM)

    def test_int(self):
        self.stopped(signal.SIGINT, -signal.SIGINT)

    def test_quit(self):
        self.stopped(signal.SIGQUIT, 0)


class SingleProcessEndTests(EndTests):
    workers = 0


class GracefulTests(StopCase):
    def answers_all(self, stop):
        server = self.serve()
        clients = self.clients(server, 100, (apps.SLEEP, b"200"), (apps.REACTOR, b"more"))
        stop(server)
        for client in clients:
            self.assertEqual(client.rest(), [(apps.SLEEP, b"200"), (apps.REACTOR, b"more")])
            client.close()
        server.wait()
        self.assertNotIn("Traceback", server.log)
        return server

    def test_term_answers_what_was_sent_then_ends_the_streams(self):
        def stop(server):
            server.send_signal(signal.SIGTERM)

        self.answers_all(stop)

    def test_quit_answers_what_was_sent_then_ends_the_streams(self):
        def stop(server):
            server.send_signal(signal.SIGQUIT)

        self.answers_all(stop)

    def test_term_for_the_whole_group_is_as_graceful(self):
        def stop(server):
            server.send_signal_to_all(signal.SIGTERM)

        self.answers_all(stop)

    def test_where_workers_hear_of_it_before_the_master_none_is_replaced(self):
        server = self.serve(workers=3)
        workers = server.workers().values()
        server.send_signal(signal.SIGSTOP)
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        asked = "SIGTERM received: asking"
        wait_until(lambda: server.log.count(asked) == 3, "the workers to notice")
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGCONT)
        self.assertEqual(server.wait(), -signal.SIGTERM)
        self.assertNotIn("recycling", server.log)
        self.assertNotIn("Traceback", server.log)

    def test_two_terms_at_once_are_one(self):
        def stop(server):
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: "SIGTERM received" in server.log, "the first to be noticed")
            server.send_signal(signal.SIGTERM)

        self.answers_all(stop)

    def test_connections_that_wait_to_be_accepted_are_answered(self):
        server = self.serve(workers=1)
        (client,) = self.clients(server, 1, (apps.PING, b""))
        client.receive()  # accepted alone: the worker expects no crowd
        (pid,) = server.workers().values()
        os.kill(pid, signal.SIGSTOP)
        clients = self.clients(server, 50, (apps.THREAD, b"body"))
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: f"] {server.master}: stopping" in server.log, "the stop")
        os.kill(pid, signal.SIGCONT)
        for client in clients:
            self.assertEqual(client.rest(), [(apps.THREAD, b"body")])
            client.close()

    def test_handlers_that_wait_on_the_reactor_are_waited_for(self):
        server = self.serve()
        clients = self.clients(server, 100, (apps.LATER, b"300"))
        server.send_signal(signal.SIGTERM)
        for client in clients:
            self.assertEqual(client.rest(), [(apps.LATER, b"300")])
            client.close()
        server.wait()

    def test_idle_and_half_sent_connections_do_not_delay_it(self):
        server = self.serve(LingerTimeout=1)
        idle = self.clients(server, 20)
        half = self.clients(server, 20)
        for client in half:
            client.socket.sendall(encode(apps.REACTOR, b"body")[:10])
        for client in idle:
            client.ask(apps.PING)
        with Stopwatch(server) as watch:
            server.stop()
        measured("graceful stop with idle and half-sent connections, seconds", watch.elapsed)
        self.assertLess(watch.seconds, SOON)
        for client in idle + half:
            self.assertEqual(client.rest(), [])

    def test_no_connection_is_accepted_any_more(self):
        server = self.serve()
        (client,) = self.clients(server, 1, (apps.SLEEP, b"1000"))
        server.connect().ask(apps.PING)

        def refused():
            try:
                server.connect().close()
            except ConnectionRefusedError:
                return True
            return False

        with Stopwatch(server) as watch:
            server.send_signal(signal.SIGTERM)
            wait_until(refused, "connections to be refused")
        self.assertLess(watch.seconds, 0.9)
        self.assertEqual(client.rest(), [(apps.SLEEP, b"1000")])

    def test_the_workers_titles_say_so(self):
        server = self.serve(workers=1)
        self.clients(server, 1, (apps.SLEEP, b"1500"))
        server.connect().ask(apps.PING)
        (pid,) = server.workers().values()
        server.send_signal(signal.SIGTERM)
        expected = b"ccserver: worker process 0 is shutting down (1 connections)"

        def shown():
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return file.read().startswith(expected)

        wait_until(shown, "the title")


class ImpatientTests(StopCase):
    """Handlers that take too long: a stop has its bounds."""

    def serve_sleepers(self, **options):
        server = self.serve(**options)
        self.clients(server, 4, (apps.SLEEP, b"60000"))
        self.clients(server, 4, (apps.LATER, b"60000"))
        self.clients(server, 4)[-1].ask(apps.PING)
        return server

    def ended_by(self, server, number):
        self.assertEqual(server.wait(), -number)
        self.assertEqual(server.processes(), [])
        self.assertTrue(server.is_port_free())

    def test_int_waits_for_nobody(self):
        server = self.serve_sleepers()
        with Stopwatch(server) as watch:
            server.stop(signal.SIGINT)
        measured("stop by SIGINT with handlers that sleep, seconds", watch.elapsed)
        self.assertLess(watch.seconds, SOON)
        self.ended_by(server, signal.SIGINT)

    def test_a_second_term_stops_at_once(self):
        server = self.serve_sleepers()

        def ended():
            if server.is_alive():
                server.send_signal(signal.SIGTERM)
            return not server.is_alive()

        with Stopwatch(server) as watch:
            wait_until(ended, "the end")
        measured("stop by repeated SIGTERM with handlers that sleep, seconds", watch.elapsed)
        self.assertLess(watch.seconds, SOON)
        self.ended_by(server, signal.SIGTERM)

    def test_an_int_behind_a_term_stops_at_once(self):
        server = self.serve_sleepers()
        server.send_signal(signal.SIGTERM)

        def ended():
            if server.is_alive():
                server.send_signal(signal.SIGINT)
            return not server.is_alive()

        with Stopwatch(server) as watch:
            wait_until(ended, "the end")
        self.assertLess(watch.seconds, SOON)

    def test_the_shutdown_timeout_bounds_it(self):
        server = self.serve_sleepers(ShutdownTimeout=1)
        with Stopwatch(server) as watch:
            server.stop()
        measured("stop with ShutdownTimeout = 1 and handlers that sleep, seconds", watch.elapsed)
        self.assertGreaterEqual(watch.elapsed, 1.0)
        self.assertLess(watch.seconds, 1.0 + SOON)
        self.ended_by(server, signal.SIGTERM)

    def test_a_worker_whose_reactor_is_blocked_is_killed(self):
        server = self.serve(workers=1, ShutdownTimeout=0)
        (client,) = self.clients(server, 1)
        client.ask(apps.PING)
        client.send((apps.BLOCK, b"60000"))
        with Stopwatch(server) as watch:
            server.stop()
        self.assertLess(watch.seconds, 1.0 + SOON)
        self.ended_by(server, signal.SIGTERM)

    def test_a_stopped_worker_is_killed(self):
        server = self.serve(ShutdownTimeout=0)
        os.kill(server.workers()[0], signal.SIGSTOP)
        with Stopwatch(server) as watch:
            server.stop()
        self.assertLess(watch.seconds, 1.0 + SOON)
        self.ended_by(server, signal.SIGTERM)


class SingleProcessImpatientTests(StopCase):
    def serve_sleepers(self, **options):
        server = self.serve(workers=0, **options)
        self.clients(server, 1, (apps.SLEEP, b"60000"))
        self.clients(server, 1)[-1].ask(apps.PING)
        return server

    def test_int_waits_for_nobody(self):
        server = self.serve_sleepers()
        with Stopwatch(server) as watch:
            server.stop(signal.SIGINT)
        self.assertLess(watch.seconds, SOON)

    def test_the_shutdown_timeout_bounds_it(self):
        server = self.serve_sleepers(ShutdownTimeout=1)
        with Stopwatch(server) as watch:
            server.stop()
        self.assertLess(watch.seconds, 1.0 + SOON)


STARTED = 5.0
"""Seconds that a worker may take to start, here: while it imports it hears nothing."""


class EarlyTests(StopCase):
    def test_term_while_it_starts_leaves_nothing(self):
        for place in range(4):
            server = ServerProcess(workers=2)
            self.addCleanup(server.close)
            server.launch()
            begun = {
                0: lambda s: os.path.exists(s.path("twistd.pid")),
                1: lambda s: "starting up" in s.stderr,
                2: lambda s: len(s.processes()) > 1,
                3: lambda s: len(s.processes()) > 2,
            }[place]
            wait_until(lambda server=server, begun=begun: begun(server), "it to begin")
            with Stopwatch(server) as watch:
                server.stop()
            measured(f"stop by SIGTERM at point {place} of the start, seconds", watch.elapsed)
            self.assertEqual((place, server.wait()), (place, -signal.SIGTERM))
            self.assertFalse(os.path.exists(server.path("twistd.pid")))
            self.assertNotIn("Traceback", server.log)
            self.assertEqual(server.processes(), [])
            self.assertTrue(server.is_port_free())
            self.assertLess(watch.seconds, STARTED)
