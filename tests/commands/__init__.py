import tests.properties  # noqa: F401
