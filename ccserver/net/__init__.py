"""What moves bytes: reactor, transport, protocol, lanes and the connection table."""
