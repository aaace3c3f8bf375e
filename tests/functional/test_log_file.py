import os
import signal
import threading
from typing import ClassVar

from tests.functional import apps
from tests.functional.server import ServerCase, wait_until


class ReopenTests(ServerCase):
    options: ClassVar = {"workers": 2}

    def test_usr1_goes_on_in_a_new_file_and_no_line_is_lost(self):
        path, rotated = self.server.path("error.log"), []
        stop = threading.Event()
        made = 0

        def connect():
            nonlocal made
            while not stop.is_set():
                with self.server.connect() as client:
                    client.ask(apps.PING)
                made += 1

        thread = threading.Thread(target=connect)
        thread.start()
        try:
            for number in range(5):
                rotated.append(f"error.log.{number}")
                os.rename(path, self.server.path(rotated[-1]))
                self.server.send_signal(signal.SIGUSR1)
                wait_until(lambda: self.server.log.count("closed:") > 50, "lines in the new file")
        finally:
            stop.set()
            thread.join()

        def ends():
            return [
                line
                for name in [*rotated, "error.log"]
                for line in self.server.read(name).splitlines()
                if "closed:" in line
            ]

        wait_until(lambda: len(ends()) >= made, "a line for each connection")
        self.assertEqual(len(ends()), made)
        for line in ends():
            self.assertRegex(
                line, r"\A[0-9/]+ [0-9:]+ \[info\] [0-9]+: \*[0-9]+ closed: client_closed"
            )
