"""What decides: framing, sessions, supervision. No socket, reactor, clock or thread."""
