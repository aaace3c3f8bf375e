"""The application of L{benchmarks.pushes}: tells all connections of it something."""

from __future__ import annotations

from ccserver import App, Session

JOIN, TELL, NEWS = range(1, 4)

app = App()
joined: set[Session] = set()


@app.message(JOIN)
async def join(session: Session, request: bytes) -> bytes:
    """Be told from now on."""
    joined.add(session)
    return request


@app.message(TELL)
async def tell(session: Session, request: bytes) -> bytes:
    """Push the request to all who have joined."""
    for each in joined:
        each.send(NEWS, request)
    return request


@app.on_connection_lost
async def leave(session: Session, reason: str) -> None:
    """Not any more."""
    joined.discard(session)
