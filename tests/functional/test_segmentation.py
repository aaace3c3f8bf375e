import random
import threading
from typing import ClassVar

from ccserver.core.framing import encode
from tests.functional import apps
from tests.functional.server import ServerCase

COUNT = 1000


def packets(codes):
    """The same packets at each call: numbered, of all sizes, under C{codes} in no order."""
    dice = random.Random(5678)
    sizes = [0, 1, 2, 7, 8, 9, 30, 100]
    return [
        encode(dice.choice(codes), b"%d:" % number + dice.randbytes(dice.choice(sizes)))
        for number in range(COUNT)
    ]


def byte_by_byte(stream):
    return [stream[place : place + 1] for place in range(len(stream))]


def random_chunks(stream):
    dice = random.Random(41)
    chunks = []
    while stream:
        size = dice.choice([1, 2, 3, 7, 8, 9, 50, 500, 5000])
        chunks.append(stream[:size])
        stream = stream[size:]
    return chunks


class Segmentation:
    """The same packets in every segmentation get the same replies, byte for byte, in order."""

    codes = apps.ECHOES
    options: ClassVar = {"EmptyReads": 0}  # single bytes, as fast as they go, are a flood

    def sent_in(self, chunks):
        expected = b"".join(packets(self.codes))
        client = self.connect()

        def send():
            for chunk in chunks:
                client.socket.sendall(chunk)
            client.end()

        sending = threading.Thread(target=send)
        sending.start()
        received = client.read(len(expected) + 1)
        sending.join()
        self.assertEqual(len(received), len(expected))
        self.assertTrue(received == expected, "other bytes, or in another order")

    def test_all_in_one(self):
        self.sent_in([b"".join(packets(self.codes))])

    def test_a_packet_each(self):
        self.sent_in(packets(self.codes))

    def test_byte_by_byte(self):
        self.sent_in(byte_by_byte(b"".join(packets(self.codes))))

    def test_random_chunks(self):
        self.sent_in(random_chunks(b"".join(packets(self.codes))))


class ReactorSegmentationTests(Segmentation, ServerCase):
    codes = (apps.REACTOR,)


class ThreadSegmentationTests(Segmentation, ServerCase):
    codes = (apps.THREAD,)


class AwaitSegmentationTests(Segmentation, ServerCase):
    codes = (apps.AWAIT,)


class MixedSegmentationTests(Segmentation, ServerCase):
    codes = (apps.REACTOR, apps.THREAD, apps.AWAIT)
