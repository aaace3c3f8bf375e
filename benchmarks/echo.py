"""The application that ccserver serves in the benchmarks: the body comes back under its code."""

from ccserver import App, Session

app = App()
MUCH = bytes(16 << 10)


@app.message(1)
async def echo(session: Session, request: bytes) -> bytes:
    """Echo on the reactor."""
    return request


@app.message(3)
async def much(session: Session, request: bytes) -> bytes:
    """16 KiB for whatever comes."""
    return MUCH


@app.message(2)
def echo_in_thread(session: Session, request: bytes) -> bytes:
    """Echo in the thread pool."""
    return request
