"""The application that ccserver serves in the benchmarks: the body comes back under its code."""

from ccserver import App, Session

app = App()


@app.message(1)
async def echo(session: Session, request: bytes) -> bytes:
    """Echo on the reactor."""
    return request


@app.message(2)
def echo_in_thread(session: Session, request: bytes) -> bytes:
    """Echo in the thread pool."""
    return request
