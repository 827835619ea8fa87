"""Messages between the server and its gRPC front: their codes, and how the front is to serve."""

import msgspec

from ziggurat.serve.predict.messages import METHODS

FRONT = "ziggurat.serve.predict.grpc_front"
"""The front's program; the server does not import it, nor gRPC."""
NAMES = sorted(METHODS)
"""Methods, by the code of the message that calls them."""
START, STARTED, FAILED, STOP, CANCEL = range(1000, 1005)
"""Codes of messages that are no calls; an answer's code is 0 or the HTTP status of its error."""


class FrontSettings(msgspec.Struct):
    """Settings of the gRPC server's process."""

    address: str
    limit: int
    """Bytes of the largest message."""
    calls: int
    """Inferences under way at once; more are refused."""
    streams: int
    """Streams open at once; more are refused."""
    fast: int
    """Messages of inferences that are read at once."""
    slow: int
    """Messages that took longer and are read on beside the others; more are refused."""
    memory: int
    """Bytes that messages being read may take in all."""
    keys: list[str] = []
    admin_keys: list[str] = []
    certificate: str = ""
    key: str = ""
