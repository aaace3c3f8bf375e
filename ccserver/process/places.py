"""Places: a slot, who works in it, and who accepts from its sockets meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IDelayedCall

from ccserver.core.supervision import Slot
from ccserver.process.listening import Listening
from ccserver.process.workers import WorkerOfMaster


class Place:
    """A slot and who works in it.

    @ivar slot: its state.
    @ivar worker: who works in it, or is being started to; None while there is nobody.
    @ivar respawn: when the next one is started, if there is nobody.
    @ivar lender: who accepts from its sockets meanwhile.
    """

    def __init__(self, number: int) -> None:
        self.slot = Slot(number)
        self.worker: WorkerOfMaster | None = None
        self.respawn: IDelayedCall | None = None
        self.lender: WorkerOfMaster | None = None

    def keep_empty(self) -> None:
        """Start nobody any more."""
        if self.respawn is not None and self.respawn.active():
            self.respawn.cancel()
        self.respawn = None

    def lend(self, listening: Listening, others: Sequence[WorkerOfMaster]) -> None:
        """Let whoever of C{others} has least to do accept from its sockets; may be nobody."""
        if not others:
            return
        self.end_lending()
        lender = self.lender = min(others, key=lambda each: each.connections)
        number = self.slot.number
        for address, lent in zip(listening.addresses, listening.of_slot(number), strict=True):
            done = lender.lend(number, str(address), lent)
            done.addCallback(self._lent, lender)

    def _lent(self, accepts: bool, lender: WorkerOfMaster) -> None:
        """Without a descriptor for a socket it is no help: let somebody else be asked."""
        if not accepts and self.lender is lender:
            self.end_lending()

    def end_lending(self) -> None:
        """Let nobody else accept from its sockets any more."""
        if self.lender is not None:
            self.lender.give_back(self.slot.number)
            self.lender = None
