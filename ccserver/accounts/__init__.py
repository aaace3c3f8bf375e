"""The bundled application: ping, and accounts in a real database; docs/accounts.md."""

from ccserver.accounts.handlers import app

__all__ = ["app"]
