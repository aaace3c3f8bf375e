"""load_app: the application that a configuration or a command line names."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from ccserver.app import App
from ccserver.errors import AppError


def load_app(name: str, paths: Sequence[str] = ()) -> App:
    """The L{App} that C{name}, C{module:attribute}, stands for.

    @param paths: folders that are searched behind all others; they stay on C{sys.path}, for
        the application may import from them later on.
    @raise AppError: there is none; one line that says why, with the original as its cause.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise AppError(f"{name!r} names no application; allowed: module.path:attribute")
    sys.path.extend(path for path in paths if path not in sys.path)
    module = _imported(module_name)
    try:
        app = getattr(module, attribute)
    except AttributeError as error:
        apps = ", ".join(sorted(k for k, v in vars(module).items() if isinstance(v, App)))
        there = f"; it has the application {apps}" if apps else ""
        raise AppError(f"module {module_name} has no attribute {attribute!r}{there}") from error
    except (Exception, SystemExit) as error:  # of the module's own __getattr__
        raise _failed(name, error) from error
    if not isinstance(app, App):
        raise AppError(f"{name} is a {type(app).__name__}, not an App")
    return app


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise AppError(f"there is no module {error.name}") from error
        raise _failed(name, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _failed(name: str, error: BaseException) -> AppError:
    said = " ".join(str(error).split())
    text = f"importing {name} failed: {type(error).__name__}{': ' if said else ''}{said}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__)
        and not frame.filename.startswith("<frozen importlib")
    ]
    if frames and not isinstance(error, SyntaxError):  # which names its place itself
        text += f" ({frames[-1].filename}, line {frames[-1].lineno})"
    return AppError(text)
