"""What keeps processes alive: master, workers, the link between them, sockets and logs."""
