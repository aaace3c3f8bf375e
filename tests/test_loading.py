import os
import sys
from itertools import count
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from ccserver.app import App
from ccserver.errors import AppError, ConfigError
from ccserver.loading import load_app, missing_module

_numbers = count()


class LoadCase(SynchronousTestCase):
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


class LoadAppTests(LoadCase):
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
        self.assertIsNone(error.__cause__)

    def refused_folder(self, name, mode):
        """What loading C{name} says where the folder has C{mode}, and we are not root."""
        uid, others = os.geteuid(), list(sys.path)
        os.chmod(self.folder, mode)
        try:
            os.seteuid(uid or 65534)
            sys.path.clear()  # what we find no more in other folders, Python would remember
            with self.assertRaises(ConfigError) as caught:
                load_app(name, ["/absent", self.folder])
        finally:
            os.seteuid(uid)
            sys.path[:] = others
            os.chmod(self.folder, 0o700)
        return str(caught.exception)

    def test_a_folder_that_may_not_be_read_is_named(self):
        name = self.module("from ccserver.app import App\nmine = App()\n")
        said = f"AppPath: the folder {self.folder} cannot be read: Permission denied"
        for mode in (0o000, 0o444, 0o111):  # neither, listed only, entered only
            self.assertEqual(self.refused_folder("nowhere_to_be_found:app", mode), said)
        self.assertEqual(self.refused_folder(f"{name}:mine", 0o000), said)

    def test_one_that_is_not_needed_does_not_matter(self):
        os.chmod(self.folder, 0)
        self.addCleanup(os.chmod, self.folder, 0o700)
        self.assertIsInstance(load_app("ccserver.accounts:app", [self.folder]), App)

    def test_a_missing_submodule_is_named(self):
        self.assertEqual(str(self.refusal("email.absent:app")), "there is no module email.absent")

    def test_a_module_that_the_app_misses_is_not_taken_for_the_app_s(self):
        error = self.refusal(f"{self.module('import absent_library')}:app")
        self.assertIn("ModuleNotFoundError: No module named 'absent_library'", str(error))
        self.assertIsNone(error.__cause__)

    def test_a_missing_attribute_is_named_with_the_apps_there_are(self):
        name = self.module("from ccserver.app import App\nmine = App()\n")
        error = self.refusal(f"{name}:app")
        self.assertEqual(
            str(error), f"module {name} has no attribute 'app'; it has the application mine"
        )
        self.assertIsNone(error.__cause__)

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
        error = self.refusal(f"{name}:app")
        self.assertIn(f"({name}.py, line 1)", str(error))
        self.assertIsNone(error.__cause__)

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


class MissingModuleTests(LoadCase):
    def test_what_is_there_is_found_and_not_imported(self):
        name = self.module("raise ValueError\n")
        self.assertIsNone(missing_module(f"{name}:app", [self.folder]))
        self.assertNotIn(name, sys.modules)

    def test_a_package_is_looked_into(self):
        os.mkdir(os.path.join(self.folder, "looked_into"))
        with open(os.path.join(self.folder, "looked_into", "game.py"), "w"):
            pass
        for name, missing in (("game", None), ("play", "looked_into.play")):
            found = missing_module(f"looked_into.{name}:app", [self.folder])
            self.assertEqual(found, missing)
        self.assertNotIn("looked_into", sys.modules)

    def test_it_says_what_loading_would(self):
        for name in ("nowhere_to_be_found", "email.absent.x", "math.absent", "email.utils", "sys"):
            missing = missing_module(f"{name}:app")
            said = str(self.refusal(f"{name}:app"))
            if missing is None:
                self.assertIn("has no attribute", said)
            else:
                self.assertEqual(said, f"there is no module {missing}")

    def test_a_folder_that_may_not_be_read_is_told(self):
        denied = PermissionError(13, "Permission denied")
        self.patch(os, "listdir", lambda path: (_ for _ in ()).throw(denied))
        error = self.assertRaises(ConfigError, missing_module, "nowhere:app", [self.folder])
        self.assertIn("AppPath: the folder", str(error))
