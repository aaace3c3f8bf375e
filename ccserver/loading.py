"""load_app: the application that a configuration or a command line names."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType

from ccserver.app import App
from ccserver.errors import AppError, ConfigError


def load_app(name: str, paths: Sequence[str] = ()) -> App:
    """The L{App} that C{name}, C{module:attribute}, stands for.

    @param paths: folders that are searched behind all others; they stay on C{sys.path}, for
        the application may import from them later on.
    @raise AppError: there is none; one line that says why. Its cause is what the application's
        own code has raised, if it has: what was raised there needs a traceback, the rest does not.
    @raise ConfigError: a module is missing, and one of the folders may not be read.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise AppError(f"{name!r} names no application; allowed: module.path:attribute")
    sys.path.extend(path for path in paths if path not in sys.path)
    module = _imported(module_name, paths)
    try:
        app = getattr(module, attribute)
    except AttributeError:
        apps = ", ".join(sorted(k for k, v in vars(module).items() if isinstance(v, App)))
        there = f"; it has the application {apps}" if apps else ""
        text = f"module {module_name} has no attribute {attribute!r}{there}"
        raise AppError(text) from None
    except (Exception, SystemExit) as error:  # of the module's own __getattr__
        raise _failed(name, error) from error
    if not isinstance(app, App):
        raise AppError(f"{name} is a {type(app).__name__}, not an App")
    return app


def _imported(name: str, paths: Sequence[str]) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        _check_readable(paths)  # Python takes a folder that it may not read for an empty one
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise AppError(f"there is no module {error.name}") from None
        raise _failed(name, error) from None
    except SyntaxError as error:  # which names its place itself
        raise _failed(name, error) from None
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def missing_module(name: str, paths: Sequence[str] = ()) -> str | None:
    """The first module of the application C{name} that is not there; nothing is imported.

    @param paths: as for L{load_app}.
    @raise ConfigError: a module is missing, and one of the folders may not be read.
    """
    places: list[Sequence[str] | None] = [None, paths]  # built in, or in sys.path, before ours
    module = ""
    for part in name.partition(":")[0].split("."):
        module = f"{module}.{part}" if module else part
        spec = next(filter(None, (_spec(module, folders) for folders in places)), None)
        if spec is None:
            _check_readable(paths)
            return module
        places = [list(spec.submodule_search_locations or ())]  # none, where it is no package
    return None


def _spec(module: str, folders: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        with suppress(ImportError):
            spec = finder.find_spec(module, folders)
            if spec is not None:
                return spec
    return None


def _check_readable(paths: Sequence[str]) -> None:
    for path in paths:
        try:
            os.stat(os.path.join(path, "."))
            os.listdir(path)
        except PermissionError as error:
            text = f"AppPath: the folder {path} cannot be read: {error.strerror}"
            raise ConfigError(text, key="AppPath") from None
        except OSError:
            pass  # one that is not there, or an archive


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
