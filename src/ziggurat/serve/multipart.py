"""Bodies of ``multipart/form-data`` (RFC 7578): fields and files.

Parts are cut at the boundary; their headers are read by the standard library's parser of e-mails.
(That parser reads whole bodies too, line by line, at 2 MB a second.)

>>> body = b'--x\\r\\nContent-Disposition: form-data; name="a"\\r\\n\\r\\n1\\r\\n--x--'
>>> read_form(body, "multipart/form-data; boundary=x")
[Part(name='a', filename=None, content=b'1')]
"""

import dataclasses
from email.message import Message
from email.parser import BytesHeaderParser

from ziggurat.serve.errors import RequestError, short

MOST_PARTS = 64
"""Most parts of a body."""
MOST_HEADER_BYTES = 8192
"""Longest headers of a part."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One field or file."""

    name: str
    filename: str | None
    """Name of the file; ``None``: it is a field."""
    content: bytes

    @property
    def text(self) -> str:
        """Content of a field.

        Raises:
            RequestError: it is no UTF-8.
        """
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(
                short(self.name), found=error, expected="UTF-8", param=self.name
            ) from None


def read_form(body: bytes, content_type: str) -> list[Part]:
    """Parts of a body, in order.

    Args:
        body: the whole body.
        content_type: the request's header, which names the boundary.

    Raises:
        RequestError: it is another type, or the body breaks the form.
    """
    told = Message()
    told["content-type"] = content_type
    boundary = told.get_boundary()
    if told.get_content_type() != "multipart/form-data" or not boundary:
        raise RequestError(
            "content-type",
            found=short(content_type) or "none",
            expected="multipart/form-data with a boundary",
        )
    try:
        mark = b"\r\n--" + boundary.encode("latin-1")
    except UnicodeEncodeError:
        raise _broken("a boundary that is not ASCII") from None
    pieces = (b"\r\n" + body).split(mark, MOST_PARTS + 2)
    if len(pieces) > MOST_PARTS + 2:
        raise _broken(f"over {MOST_PARTS} parts")
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise _broken("no last boundary: the body is cut, or it is another boundary")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    """A part, from behind its boundary to before the next one."""
    # behind a boundary spaces may stand before the line ends
    first = piece.find(b"\r\n")
    end = piece.find(b"\r\n\r\n", 0, MOST_HEADER_BYTES)
    if first < 0 or piece[:first].strip(b" \t") or end < 0:
        raise _broken("a part without headers, or with too long ones")
    headers = BytesHeaderParser().parsebytes(piece[first + 2 : end + 2])
    disposition = headers.get_content_disposition()
    name = headers.get_param("name", header="content-disposition")
    if disposition != "form-data" or not isinstance(name, str):
        raise _broken("a part without Content-Disposition: form-data; name=...")
    if headers.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise _broken("a part with a Content-Transfer-Encoding, which RFC 7578 forbids")
    return Part(name, headers.get_filename(), piece[end + 4 :])


def _broken(found: str) -> RequestError:
    return RequestError("request body", found=found, expected="multipart/form-data (RFC 7578)")
