"""The owner: found by name, and given what root has opened, but nothing else."""

from __future__ import annotations

import grp
import os
import pwd
from unittest import skipUnless

from twisted.trial.unittest import SynchronousTestCase

from ccserver.errors import UnknownOwner
from ccserver.owner import Owner
from tests.support import folder

NOBODY = pwd.getpwnam("nobody")


class NameTests(SynchronousTestCase):
    def test_a_user_comes_with_his_group(self):
        self.assertEqual(Owner.named("nobody", ""), Owner(NOBODY.pw_uid, NOBODY.pw_gid))

    def test_or_with_another(self):
        daemon = grp.getgrnam("daemon").gr_gid
        self.assertEqual(Owner.named("nobody", "daemon").gid, daemon)
        self.assertEqual(Owner.named(str(NOBODY.pw_uid), str(daemon)), Owner(NOBODY.pw_uid, daemon))

    def test_twistds_numbers_do_as_well(self):
        self.assertEqual(Owner.with_ids(NOBODY.pw_uid, None), Owner(NOBODY.pw_uid, NOBODY.pw_gid))
        self.assertEqual(Owner.with_ids(NOBODY.pw_uid, 7).gid, 7)

    def test_who_is_not_there_is_named(self):
        for user, group, text in (
            ("no-such-user", "", 'User: there is no user "no-such-user"'),
            ("3999999999", "", 'User: there is no user "3999999999"'),
            ("9" * 30, "", f'User: there is no user "{"9" * 30}"'),
            ("nobody", "no-such-group", 'Group: there is no group "no-such-group"'),
        ):
            self.assertEqual(str(self.assertRaises(UnknownOwner, Owner.named, user, group)), text)


@skipUnless(os.geteuid() == 0, "needs root")
class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.join(folder(self), "error.log")
        with open(self.path, "w"):
            pass

    def owner_of(self, path: str) -> tuple[int, int]:
        about = os.stat(path)
        return about.st_uid, about.st_gid

    def test_a_file_becomes_his(self):
        Owner(NOBODY.pw_uid, NOBODY.pw_gid).own_file(self.path)
        self.assertEqual(self.owner_of(self.path), (NOBODY.pw_uid, NOBODY.pw_gid))

    def test_what_a_link_leads_to_does_not(self):
        for link, name in ((os.symlink, "symbolic"), (os.link, "hard")):
            link(self.path, self.path + name)
            Owner(NOBODY.pw_uid, NOBODY.pw_gid).own_file(self.path + name)
            self.assertEqual(self.owner_of(self.path), (0, 0))

    def test_neither_does_what_is_no_file(self):
        os.mkfifo(self.path + ".fifo")
        for path in (self.path + ".fifo", os.path.dirname(self.path)):
            Owner(NOBODY.pw_uid, NOBODY.pw_gid).own_file(path)
            self.assertEqual(self.owner_of(path), (0, 0))
        Owner(NOBODY.pw_uid, NOBODY.pw_gid).own_file("/nowhere/at/all")
