"""C{python -m ccserver}: the command of the same name, where it is not installed."""

from ccserver.commands import main

if __name__ == "__main__":
    main(prog_name="ccserver")
