"""What is answered to ping, register and login, and what a worker opens for it."""

from __future__ import annotations

from twisted.logger import Logger

from ccserver import App, Config, ConfigError, Session, Worker
from ccserver.accounts.dbinfo import database_url, names_no_database
from ccserver.accounts.gate import Gate
from ccserver.accounts.messages import Login, LoginReply, Register, RegisterReply, Result
from ccserver.accounts.passwords import Passwords
from ccserver.accounts.registrar import Registrar
from ccserver.accounts.store import Store, Unavailable

log = Logger()

app = App()


@app.message(0)
async def ping(session: Session, request: None) -> bytes:
    """A sign of life: the reply is empty too."""
    return b""


@app.message(5)
def register(session: Session, request: Register) -> RegisterReply:
    """Create the account named in the request; the reply says how that went."""
    try:
        result = _registrar().register(request.username, request.password)
    except Unavailable:
        result = Result.UNAVAILABLE
    log.debug(
        "*{id} register {username!r}: {result}",
        id=session.id,
        username=request.username,
        result=result.name,
    )
    return RegisterReply(result=result, username=request.username)


@app.message(6)
def login(session: Session, request: Login) -> LoginReply:
    """Check name and password; C{session.state["user"]} is the name from then on.

    A later failure on the same connection leaves an earlier success in force. Who was wrong too
    often is told to try later, whether it would be right this time or not.
    """
    gate: Gate = app.state["gate"]
    if not gate.admits(session, request.username):
        return LoginReply(result=Result.UNAVAILABLE)
    try:
        known = _registrar().login(request.username, request.password)
    except Unavailable:
        return LoginReply(result=Result.UNAVAILABLE)
    (gate.succeeded if known else gate.failed)(session, request.username)
    log.debug(
        "*{id} login {username!r}: {outcome}",
        id=session.id,
        username=request.username,
        outcome="done" if known else "refused",
    )
    if not known:
        return LoginReply()
    session.state["user"] = request.username
    session.known = True
    return LoginReply(username=request.username)


@app.on_worker_start
def open_accounts(worker: Worker) -> None:
    """Open the database that C{DBInfo} names; while it is away, the worker starts all the same.

    @raise ConfigError: C{DBInfo} names none.
    """
    config = worker.config
    try:
        store = _open_store(config)
    except ConfigError as error:
        raise config.refusal("DBInfo", str(error)) from None
    before = app.state.get("registrar")
    app.state["registrar"] = Registrar(store, Passwords(config.database))
    app.state["gate"] = Gate(config.accounts)
    if before is not None:
        before.close()


@app.on_worker_stop
def close_accounts(worker: Worker) -> None:
    """Close the database's connections."""
    if "registrar" in app.state:
        _registrar().close()


def _open_store(config: Config) -> Store:
    info = config.database.info
    store = Store(database_url(info, config.log.file), config.process.threads)
    if names_no_database(info):
        log.info(
            "DBInfo = {info} names no database: accounts are kept in {where}",
            info=info,
            where=store.where,
        )
    else:
        log.info("accounts are kept in {where}", where=store.where)
    store.prepare()
    return store


def _registrar() -> Registrar:
    registrar: Registrar = app.state["registrar"]
    return registrar
