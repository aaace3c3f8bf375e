"""Measures ccserver against other ways to serve the same protocol in Python: see README.md."""
