"""Dispatch: packets to handlers, on the reactor or in the pool.

A connection has one L{Lane}. It handles the connection's packets one after the other: C{async
def} on the reactor, C{def} in the worker's L{Pool}, consecutive ones as one job. The reactor's
part is done by a I{runner}, a generator that serves all lanes in turn. A handler that has to
wait keeps the runner it is in, and the next lane gets another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from time import perf_counter
from types import coroutine
from typing import Any

from twisted.logger import Logger

from ccserver.app import App, Handler, is_coroutine_function
from ccserver.core.counts import Counts, LineLimit
from ccserver.core.framing import FULL, HEADER_LENGTH, Packet, header
from ccserver.core.limits import SessionLimits
from ccserver.core.outbox import Outbox, SendLimits
from ccserver.core.session import Session
from ccserver.errors import ProtocolError, SessionClosed
from ccserver.net.begun import Begun
from ccserver.net.lane import DONE, Lane, Runner
from ccserver.net.peer import NOBODY, Peer
from ccserver.net.pool import Pool
from ccserver.net.reply import LONG_MARK, OUTPUT_MARK, reply_body
from ccserver.net.sending import Sender
from ccserver.net.slices import STRIDE, Slices
from ccserver.net.throttle import Throttle

IDLE_RUNNERS = 64
"""Runners that are kept: as many as handlers that waited at once would be kept for ever."""

LANE_BYTES = 256 << 10
"""Bytes that wait in a lane before its reading is paused, where nobody says how many."""

NEVER = sys.maxsize
"""A place that no packet has."""

TRACEBACKS_PER_SECOND = 10
"""Of one handler: 20,000 packets that raise would be 10 MiB of log; the others are counted."""


class Consent:
    """Whether the application lets a connection go: the C{reason} of its hand-over hooks.

    @ivar refused: one of them does not.
    """

    __slots__ = ("refused",)

    def __init__(self) -> None:
        self.refused = False


class Dispatch:
    """What the lanes of a worker share: the handlers, the pool and the bounds.

    @ivar behind: the lanes whose clients are behind.
    @ivar lines: how many tracebacks are logged.
    @ivar slices: how long a lane has the reactor in one go.
    @ivar threaded: the codes whose handlers run in the pool.
    """

    __slots__ = (
        "_pattern",
        "adopt",
        "behind",
        "counts",
        "handlers",
        "handover",
        "idle_runners",
        "lane_bytes",
        "lane_packets",
        "lines",
        "lost",
        "made",
        "pool",
        "send_limits",
        "slices",
        "threaded",
        "throttle",
    )

    log = Logger()

    def __init__(
        self,
        app: App,
        pool: Pool,
        lane_packets: int,
        counts: Counts,
        send_limits: SendLimits | None = None,
        lane_bytes: int = LANE_BYTES,
        slices: Slices | None = None,
    ) -> None:
        """
        @param lane_packets: how many packets wait in a lane before its reading is paused.
        @param send_limits: how much waits to be sent.
        @param lane_bytes: how many bytes of packets wait in a lane before its reading is paused.
        @param slices: without them a lane has the reactor for as long as it likes.
        """
        self.handlers = pool.handlers = dict(app.handlers)
        self.threaded = {code for code, handler in self.handlers.items() if handler.in_thread}
        self.pool = pool
        self.lane_packets = lane_packets
        self.lane_bytes = lane_bytes
        self.counts = counts
        self.send_limits = send_limits or SendLimits()
        self.behind: set[Sender] = set()
        self.slices = slices or Slices(None, 0.0)
        self.throttle = Throttle()
        self.lines = LineLimit(TRACEBACKS_PER_SECOND)
        self.idle_runners: list[Runner] = []
        # hooks are handlers under codes that no packet can have: they need no way of their own
        self.made = [self._hook(made, False) for made in app.connection_made]
        self.lost = [self._hook(lost, True) for lost in app.connection_lost]
        self.adopt = [self._hook(adopt, False) for adopt in app.connection_adopt]
        self.handover = [self._hook(_asking(hook), True) for hook in app.connection_handover]
        self._pattern = Lane(Session(0, "-", "-", SessionLimits(), 0.0), NOBODY, self)

    def lane(self, session: Session, peer: Peer) -> Lane:
        """The lane of a connection that begins."""
        return self._pattern.another(session, peer)

    def fall_behind(self, lane: Sender) -> Outbox:
        """What waits for the client of C{lane} from now on."""
        self.behind.add(lane)
        return Outbox(self.send_limits, self.counts.waiting)

    def check(self, now: float) -> None:
        """Close where too much has waited for too long; to be called about once a second."""
        for lane in list(self.behind):
            if lane.outbox is not None and lane.outbox.check(now):
                lane.overflow()
            elif lane.outbox is not None and lane.outbox.stalled(lane.taken, now):
                lane.stall()

    def take_runner(self) -> Runner:
        """A runner with nothing to do."""
        if self.idle_runners:
            return self.idle_runners.pop()
        runner: Runner = self._handle()
        runner.send(None)
        return runner

    def give_back(self, runner: Runner) -> None:
        """C{runner} has nothing to do any more."""
        if len(self.idle_runners) < IDLE_RUNNERS:
            self.idle_runners.append(runner)
        else:
            runner.close()

    @coroutine
    def _handle(self) -> Runner:
        """Handle the packets of one lane after the other."""
        handlers, seconds = self.handlers, self.slices.seconds
        lane: Lane
        packets: Iterable[Packet]
        begun: Begun | BaseException | None
        lane, packets, begun = yield DONE
        while True:
            session = lane.session
            count = total = flushed = 0
            since, mine, look = 0.0, None, 1 if seconds else NEVER
            mark = LONG_MARK if session.decoder.fed > FULL else OUTPUT_MARK
            rest = iter(packets)
            for place, (code, body) in enumerate(rest):
                if lane.halted and code >= 0 and begun is None:
                    if lane.closed:
                        continue
                    lane.put_back([(code, body), *rest])
                    break
                if place >= look:
                    look = place + min(place, STRIDE)
                    now = perf_counter()
                    if lane.out is not mine:  # it begins, or has waited: others had the reactor
                        since, mine = now, lane.out
                    elif now - since > seconds:
                        lane.postpone([(code, body), *rest])
                        break
                handler = handlers.get(code)
                if handler is None:
                    lane.refuse_unknown(code)
                    continue
                if handler.in_thread:
                    lane.submit([(code, body), *rest])
                    break
                decode = handler.decode
                try:
                    if begun is None:
                        call = handler.function(session, body if decode is None else decode(body))
                    elif isinstance(begun, Begun):
                        call, begun = begun, None
                    else:  # not from an iterator, where StopIteration is no error
                        raised, begun = begun, None
                        try:
                            raise raised
                        finally:
                            del raised  # it has its frames, and what those have
                    reply = yield from call
                    if reply is not None:
                        if reply.__class__ is not bytes:
                            reply = reply_body(reply)
                        head = header(code, reply)
                        out = lane.out  # another one, if the handler has waited
                        out += (head, reply)  # both or none
                        count += 1
                        total += HEADER_LENGTH + len(reply)
                except ProtocolError as error:
                    lane.refuse(error, code)
                except SessionClosed:
                    pass  # who was to be sent something has left, which is no fault
                except BaseException as error:
                    if error.__class__ is GeneratorExit and not lane.running:
                        raise  # we are being closed; else a handler has raised it
                    self.counts.handler_errors += 1
                    lane.failed(handler)
                if total - flushed > mark:
                    flushed = total
                    if lane.flush():
                        lane.put_back(rest)
            session.packets_out += count
            session.bytes_out += total
            lane, packets, begun = yield DONE

    def _hook(self, hook: Callable[..., Any], with_reason: bool) -> int:
        code = -1 - len(self.handlers)
        in_thread = not is_coroutine_function(hook)
        name = getattr(hook, "__name__", str(hook))

        def call(session: Session, reason: Any) -> None:
            hook(session, reason) if with_reason else hook(session)

        async def call_async(session: Session, reason: Any) -> None:
            await (hook(session, reason) if with_reason else hook(session))

        if in_thread:
            self.threaded.add(code)
        function = call if in_thread else call_async
        self.handlers[code] = Handler(code, name, function, in_thread, None, bytes, None)
        return code


def _asking(hook: Callable[[Session], Any]) -> Callable[[Session, Consent], Any]:
    """The hand-over hook C{hook} as one that notes in a L{Consent} what it says."""

    def ask(session: Session, consent: Consent) -> None:
        if not consent.refused:
            consent.refused = True  # what it raises is logged as that of any hook
            consent.refused = hook(session) is False

    async def ask_async(session: Session, consent: Consent) -> None:
        if not consent.refused:
            consent.refused = True
            consent.refused = await hook(session) is False

    asking = ask_async if is_coroutine_function(hook) else ask
    asking.__name__ = getattr(hook, "__name__", str(hook))
    return asking
