"""The directions of import, as a test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ccserver

PACKAGE = Path(ccserver.__file__).parent
PLUGIN = PACKAGE.parent / "twisted" / "plugins" / "ccserver_plugin.py"

MAY_IMPORT = {
    "": "app config core errors message",
    "errors": "",
    "config": "errors",
    "message": "errors",
    "native": "_native",
    "app": "config errors message",
    "loading": "app errors",
    "owner": "errors",
    "certificates": "config errors",
    "core": "errors message native",
    "client": "app core errors message",
    "net": "app core errors message native",
    "process": "app certificates config core errors loading native net owner",
    "tap": "config errors owner process",
    "accounts": "config",
    "commands": "accounts app certificates client config core errors loading message native owner",
    "__main__": "commands",
}
"""By layer, the other layers that it may import; the layer "" is C{ccserver} itself, the public
names. Everybody may import within his own layer."""

PUBLIC_IMPORTERS = {"accounts", "commands"}
"""The layers written with the public names, as a user of ccserver writes."""

REACTOR_FREE = "errors config message app loading core client.__init__ client.exchange "
REACTOR_FREE += "client.blocking"
"""What is usable without Twisted."""

CORE_WITHOUT = {
    *("asyncio", "concurrent", "logging", "os", "queue", "sched", "select", "selectors"),
    *("signal", "socket", "ssl", "subprocess", "sys", "threading", "time", "twisted", "zope"),
}
THREADS = {"_thread", "concurrent", "multiprocessing", "queue", "threading"}


def modules() -> dict[str, Path]:
    """Every module of the package by its name without C{ccserver.}."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def layer(module: str) -> str:
    """The layer of a module: its first name; of C{ccserver} itself, none."""
    return module.partition(".")[0].replace("__init__", "")


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or any(path.with_suffix(end).exists() for end in (".py", ".pyi"))


def imported(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                outside = not name.startswith("ccserver.")
                yield name if outside or is_module(name) else node.module


def importers(of: set[str], among: list[str] | None = None) -> list[str]:
    """The modules that import one of the top-level modules C{of}."""
    return [
        f"{name} imports {target}"
        for name, path in modules().items()
        if among is None or name in among
        for target in imported(path)
        if target.partition(".")[0] in of
    ]


class LayerTests(SynchronousTestCase):
    def test_every_layer_is_known(self):
        self.assertEqual({layer(module) for module in modules()}, set(MAY_IMPORT))

    def test_imports_go_one_way(self):
        wrong = []
        for module, path in modules().items():
            mine = layer(module)
            allowed = {mine, *MAY_IMPORT[mine].split()} - {""}
            if mine in PUBLIC_IMPORTERS:
                allowed.add("")
            for target in imported(path):
                package, _, rest = target.partition(".")
                if package == "ccserver" and rest.partition(".")[0] not in allowed:
                    wrong.append(f"{module} imports {target}")
        self.assertEqual(wrong, [])

    def test_the_core_knows_no_socket_reactor_clock_or_thread(self):
        core = [name for name in modules() if layer(name) in ("core", "errors", "message")]
        self.assertEqual(importers(CORE_WITHOUT, core), [])

    def test_what_needs_no_reactor_does_without_twisted(self):
        names = REACTOR_FREE.split()
        free = [name for name in modules() if name in names or layer(name) in names]
        free = [name for name in free if layer(name) != "client" or name in names]
        self.assertEqual(importers({"twisted", "zope"}, free), [])

    def test_only_make_service_takes_the_global_reactor(self):
        takers = [
            name
            for name, path in modules().items()
            for target in imported(path)
            if target.startswith("twisted.internet.reactor")
        ]
        self.assertEqual(takers, ["tap"])
        module = ast.parse(modules()["tap"].read_text("utf-8"))
        top = [node for node in module.body if isinstance(node, ast.ImportFrom)]
        self.assertNotIn("reactor", [alias.name for node in top for alias in node.names])

    def test_only_the_worker_installs_a_reactor(self):
        installers = [
            name
            for name, path in modules().items()
            if any(target.startswith("twisted.internet.main.i") for target in imported(path))
        ]
        self.assertEqual(installers, ["process.worker"])

    def test_only_the_pool_the_workers_watch_and_the_accounts_know_of_threads(self):
        threaded = {name.split()[0] for name in importers(THREADS)}
        ours = {name for name in threaded if layer(name) != "accounts"}
        pool = {"net.errand", "net.jobs", "net.pool", "net.throttle"}
        expected = pool | {"process.logfile", "process.worker"}
        self.assertEqual(ours, expected)

    def test_the_plugin_names_the_service_and_imports_nothing_of_ours(self):
        self.assertEqual(list(imported(PLUGIN)), ["twisted.application.service.ServiceMaker"])

    def test_the_plugin_folders_are_no_packages_of_ours(self):
        self.assertFalse((PLUGIN.parent / "__init__.py").exists())
        self.assertFalse((PLUGIN.parent.parent / "__init__.py").exists())
