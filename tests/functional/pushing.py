"""An application that sends much of its own accord, in every way there is."""

from __future__ import annotations

from ccserver import App, Session

FLOOD, FLOOD_IN_THREAD, FEED, STREAM, ECHO, STREAM_IN_THREAD = range(1, 7)

BODY = bytes(4096)

app = App()


@app.message(FLOOD)
async def flood(session: Session, request: bytes) -> None:
    """Send so many MiB at once."""
    for _ in range(int(request) * 256):
        session.send(FLOOD, BODY)


@app.message(FLOOD_IN_THREAD)
def flood_in_thread(session: Session, request: bytes) -> None:
    for _ in range(int(request) * 256):
        session.send(FLOOD_IN_THREAD, BODY)


@app.message(FEED)
async def feed(session: Session, request: bytes) -> None:
    """The same, of which only the newest matter."""
    for _ in range(int(request) * 256):
        session.send(FEED, BODY, "drop_old")


@app.message(STREAM)
async def stream(session: Session, request: bytes) -> bytes:
    """The same, no quicker than the client reads."""
    for _ in range(int(request) * 256):
        await session.send_async(STREAM, BODY)
    return b"done"


@app.message(STREAM_IN_THREAD)
def stream_in_thread(session: Session, request: bytes) -> bytes:
    for _ in range(int(request) * 256):
        session.send_blocking(STREAM_IN_THREAD, BODY)
    return b"done"


@app.message(ECHO)
async def echo(session: Session, request: bytes) -> bytes:
    return request
