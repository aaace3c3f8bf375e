"""Passwords: parameters, verification, and how many are computed at once."""

import dataclasses
import threading

import argon2
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from ccserver.accounts.passwords import Passwords
from tests.accounts.support import CHEAP, in_threads, wait_until


class PasswordTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.passwords = Passwords(CHEAP)

    def test_a_hash_has_the_parameters_of_the_settings(self):
        settings = dataclasses.replace(
            CHEAP, hash_time_cost=3, hash_memory=32 << 10, hash_parallelism=2
        )
        stored = Passwords(settings).hash("secret")
        self.assertTrue(stored.startswith("$argon2id$v=19$m=32,t=3,p=2$"), stored)
        self.assertLess(len(stored), 255)

    def test_two_hashes_of_one_password_differ(self):
        self.assertNotEqual(self.passwords.hash("secret"), self.passwords.hash("secret"))

    def test_only_the_password_verifies(self):
        stored = self.passwords.hash("sécret")
        self.assertTrue(self.passwords.verify(stored, "sécret"))
        for wrong in ("", "secret", "sécret ", "SÉCRET", "\udcff"):
            self.assertFalse(self.passwords.verify(stored, wrong), repr(wrong))

    def test_nobodys_password_never_verifies(self):
        self.assertFalse(self.passwords.verify(None, "secret"))
        self.assertFalse(self.passwords.verify(None, ""))

    def test_what_is_no_hash_never_verifies_and_is_told(self):
        with capturedLogs() as events:
            self.assertFalse(self.passwords.verify("plain", "plain"))
        self.assertEqual(len(events), 1)

    def test_another_cost_is_outdated(self):
        dearer = Passwords(dataclasses.replace(CHEAP, hash_time_cost=2))
        self.assertFalse(self.passwords.is_outdated(self.passwords.hash("secret")))
        self.assertTrue(dearer.is_outdated(self.passwords.hash("secret")))

    def test_so_many_threads_compute_them_all_and_keep_their_memory(self):
        threads = set()
        real = argon2.PasswordHasher.verify

        def noted(hasher: argon2.PasswordHasher, *arguments: str) -> bool:
            threads.add(threading.get_ident())
            return real(hasher, *arguments)

        self.patch(argon2.PasswordHasher, "verify", noted)
        passwords = Passwords(CHEAP)
        in_threads(10, lambda _: [passwords.verify(None, "secret") for _ in range(10)])
        self.assertLessEqual(len(threads), CHEAP.hash_threads)
        self.assertNotIn(threading.get_ident(), threads)

    def test_its_threads_end_with_it(self):
        before = set(threading.enumerate())
        passwords = [Passwords(CHEAP)]
        in_threads(10, lambda _: passwords[0].hash("secret"))
        self.assertNotEqual(set(threading.enumerate()) - before, set())
        passwords.clear()
        wait_until(lambda: not set(threading.enumerate()) - before)

    def test_no_more_are_computed_at_once_than_allowed(self):
        running, most, lock = 0, 0, threading.Lock()
        real = argon2.PasswordHasher.verify

        def counted(hasher: argon2.PasswordHasher, *arguments: str) -> bool:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            try:
                return real(hasher, *arguments)
            finally:
                with lock:
                    running -= 1

        self.patch(argon2.PasswordHasher, "verify", counted)
        settings = dataclasses.replace(CHEAP, hash_memory=4 << 20, hash_threads=2)
        passwords = Passwords(settings)
        in_threads(10, lambda _: passwords.verify(None, "secret"))
        self.assertEqual(most, 2)
