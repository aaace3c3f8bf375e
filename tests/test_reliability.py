"""docs/reliability.md: the tests that it names are there; and what only the source can show."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.test_layers import PACKAGE, imported, modules

TESTS = Path(__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "reliability.md"
ROW = re.compile(r"^\| ([0-9]+) \| (.+) \| (.+) \| (.*)\|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)\.(test_\w+)`")
EXCUSES = ("Does not apply: ", "Not there yet")

EXECUTING_MODULES = {"pickle", "marshal", "shelve", "dill", "code", "runpy"}
EXECUTING = {"eval", "exec", "compile"}
ANNOTATIONS = "app calls eval"
"""What stands in the source of an application, which is a program."""


def named_in(path: Path) -> set[tuple[str, str]]:
    """The classes and tests of a file, as they stand there."""
    return {
        (node.name, item.name)
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
    }


class DocumentTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = DOCUMENT.read_text("utf-8")
        self.rows = ROW.findall(self.text)

    def test_every_row_is_there_once_and_in_its_order(self):
        numbers = [int(number) for number, *_ in self.rows]
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)))
        self.assertGreaterEqual(len(numbers), 70)
        lines = [line for line in self.text.splitlines() if re.match(r"\| [0-9]", line)]
        self.assertEqual(len(lines), len(numbers))

    def test_each_has_a_test_or_says_why_not(self):
        for number, _, what, shown in self.rows:
            excused = what.startswith(EXCUSES)
            self.assertTrue(NAMED.search(shown) or excused, f"row {number}")
            self.assertEqual(NAMED.sub("", shown).strip(), "", f"row {number}")

    def test_what_is_not_there_yet_is_said_at_once(self):
        for number, _, what, _ in self.rows:
            if "not there yet" in what.lower():
                self.assertTrue(what.startswith("Not there yet"), f"row {number}")

    def test_the_tests_that_are_named_exist(self):
        found: dict[str, set[tuple[str, str]]] = {}
        missing = []
        for file, case, test in NAMED.findall(self.text):
            path = TESTS / file
            if file not in found:
                found[file] = named_in(path) if path.exists() else set()
            if (case, test) not in found[file]:
                missing.append(f"{file}::{case}.{test}")
        self.assertEqual(missing, [])

    def test_the_other_files_that_are_named_exist(self):
        for name in re.findall(r"`([\w/]+\.py)`", self.text):
            self.assertTrue((TESTS / name).exists(), name)


class SourceTests(SynchronousTestCase):
    def test_nothing_that_is_read_is_executed(self):
        wrong = []
        for name, path in modules().items():
            for target in imported(path):
                if target.partition(".")[0] in EXECUTING_MODULES:
                    wrong.append(f"{name} imports {target}")
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Name) and called.id in EXECUTING:
                    wrong.append(f"{name} calls {called.id}")
                if isinstance(called, ast.Attribute) and called.attr == "fileConfig":
                    wrong.append(f"{name} reads a logging configuration")
        self.assertEqual(wrong, [ANNOTATIONS])
