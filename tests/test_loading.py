import os
import sys
from itertools import count
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.errors import AppError
from ccserver.loading import load_app

_numbers = count()


class LoadAppTests(SynchronousTestCase):
    def setUp(self):
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.patch(sys, "path", list(sys.path))
        before = set(sys.modules)
        self.addCleanup(lambda: [sys.modules.pop(name) for name in set(sys.modules) - before])

    def module(self, text):
        """The name of a new module in C{self.folder} that says C{text}."""
        name = f"loaded_{next(_numbers)}"
        with open(os.path.join(self.folder, f"{name}.py"), "w") as file:
            file.write(text)
        return name

    def refusal(self, name):
        """The error that loading C{name} ends in, whose text is one line."""
        with self.assertRaises(AppError) as caught:
            load_app(name, [self.folder])
        self.assertNotIn("\n", str(caught.exception))
        return caught.exception

    def test_an_app_is_found_in_the_folders(self):
        name = self.module("from ccserver.app import App\nmine = App()\n")
        self.assertIsInstance(load_app(f"{name}:mine", [self.folder]), App)

    def test_the_folders_are_searched_last_and_stay(self):
        name = self.module("from ccserver.app import App\nmine = App()\n")
        load_app(f"{name}:mine", [self.folder, self.folder])
        self.assertEqual(sys.path[-1], self.folder)
        self.assertEqual(sys.path.count(self.folder), 1)

    def test_a_missing_module_is_named(self):
        error = self.refusal("nowhere_to_be_found:app")
        self.assertEqual(str(error), "there is no module nowhere_to_be_found")
        self.assertIsInstance(error.__cause__, ModuleNotFoundError)

    def test_a_missing_submodule_is_named(self):
        self.assertEqual(str(self.refusal("email.absent:app")), "there is no module email.absent")

    def test_a_module_that_the_app_misses_is_not_taken_for_the_app_s(self):
        error = self.refusal(f"{self.module('import absent_library')}:app")
        self.assertIn("ModuleNotFoundError: No module named 'absent_library'", str(error))

    def test_a_missing_attribute_is_named_with_the_apps_there_are(self):
        name = self.module("from ccserver.app import App\nmine = App()\n")
        error = self.refusal(f"{name}:app")
        self.assertEqual(
            str(error), f"module {name} has no attribute 'app'; it has the application mine"
        )
        self.assertIsInstance(error.__cause__, AttributeError)

    def test_what_a_module_s_own_getattr_raises_is_told(self):
        name = self.module("def __getattr__(name):\n    raise ValueError('not today')\n")
        self.assertEqual(
            str(self.refusal(f"{name}:app")),
            f"importing {name}:app failed: ValueError: not today ({self.folder}/{name}.py, line 2)",
        )

    def test_what_is_no_app_is_refused(self):
        self.assertEqual(str(self.refusal("math:pi")), "math:pi is a float, not an App")

    def test_what_the_import_raises_is_told_with_its_place(self):
        name = self.module("x = 1\nraise ValueError('two\\nlines')\n")
        error = self.refusal(f"{name}:app")
        self.assertEqual(
            str(error),
            f"importing {name} failed: ValueError: two lines ({self.folder}/{name}.py, line 2)",
        )
        self.assertIsInstance(error.__cause__, ValueError)

    def test_a_module_that_exits_is_refused(self):
        name = self.module("raise SystemExit\n")
        self.assertIn("failed: SystemExit (", str(self.refusal(f"{name}:app")))

    def test_a_module_that_is_no_python_is_refused_with_its_place(self):
        name = self.module("x = = 1\n")
        self.assertIn(f"({name}.py, line 1)", str(self.refusal(f"{name}:app")))

    def test_an_app_that_contradicts_itself_is_refused(self):
        name = self.module(
            "from ccserver.app import App\napp = App()\n"
            "@app.message(1)\ndef a(session, body: bytes): ...\n"
            "@app.message(1)\ndef b(session, body: bytes): ...\n"
        )
        self.assertIn("message code 1 has two handlers", str(self.refusal(f"{name}:app")))

    def test_what_is_no_name_is_refused(self):
        for name in ("ccserver", "a b:app", "ccserver:", ":app", "a..b:app", "a:b.c"):
            self.assertIn("names no application", str(self.refusal(name)))
