"""The C{ccserver} command of twistd."""

from twisted.application.service import ServiceMaker

ccserver = ServiceMaker(
    "ccserver",
    "ccserver.tap",
    "A server for binary TCP protocols, with master and worker processes.",
    "ccserver",
)
