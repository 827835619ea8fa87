"""``image_url`` parts of messages: data URIs, and files under a directory of the operator's."""

import base64
import binascii
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from ziggurat.core.json_types import JsonMapping
from ziggurat.serve.errors import refused, short
from ziggurat.serve.llm.image_reader import ImageLimits

DETAILS = (None, "auto", "low", "high")
"""Values of ``detail``, of which the model's own processor makes nothing."""


class ImageParts:
    """Collects the pictures of a conversation, in order.

    Args:
        limits: on pictures, and where their files may lie.
    """

    def __init__(self, limits: ImageLimits):
        self._limits = limits
        self.pictures: list[bytes] = []
        """Files' contents."""

    def add(self, part: JsonMapping, place: str) -> dict[str, str]:
        """Take a part's picture; returns the part as chat templates read it.

        Args:
            part: of type ``image_url``, or ``input_image`` as in ``/v1/responses``.
            place: of the part, for errors.

        Raises:
            RequestError: there are too many, it is too large, or it lies where none may.
        """
        given = part.get("image_url")
        if isinstance(given, Mapping):
            if given.get("detail") not in DETAILS:
                raise refused(f"{place}.image_url.detail", short(given["detail"]), "auto")
            given = given.get("url")
        elif part.get("detail") not in DETAILS:  # of type input_image
            raise refused(f"{place}.detail", short(part["detail"]), "auto")
        where = f"{place}.image_url.url"
        if not isinstance(given, str):
            raise refused(where, type(given).__name__, "text")
        if len(self.pictures) == self._limits.count:
            found = f"more than {self._limits.count} images"
            raise refused(place, found, f"at most {self._limits.count} in a request")
        self.pictures.append(self._content(given, where))
        return {"type": "image"}

    def _content(self, url: str, where: str) -> bytes:
        scheme = url.partition(":")[0].lower() if ":" in url[:16] else ""
        if scheme == "data":
            return self._of_data(url, where)
        if scheme in ("", "file"):
            return self._of_file(url, where)
        raise refused(
            where, f"a URL of {scheme}", "a data URI, or a file under --image-root",
            "this server fetches nothing; send the picture itself",
        )  # fmt: skip

    def _of_data(self, url: str, where: str) -> bytes:
        head, comma, content = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise refused(where, short(repr(head[:60])), "data:image/...;base64,...")
        self._check_size(len(content) * 3 // 4, where)
        try:
            return base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise refused(where, "broken base64", "a picture's file in base64") from None

    def _of_file(self, url: str, where: str) -> bytes:
        root = self._limits.root
        if root is None:
            raise refused(
                where, "a file", "a data URI", "files are read if the server has an --image-root"
            )
        path = urllib.parse.unquote(url.removeprefix("file://")) if url[:5] == "file:" else url
        try:
            home = root.resolve()
            file = (home / path).resolve()  # links out of the directory are followed, and refused
            inside = file.is_relative_to(home) and file.is_file()
            size = file.stat().st_size if inside else 0
        except (OSError, ValueError):  # ValueError: a null byte
            inside, size, file = False, 0, Path()
        if not inside:  # whether there is such a file elsewhere is nobody's business
            raise refused(where, "no such file", "a file under --image-root")
        self._check_size(size, where)
        try:
            return file.read_bytes()
        except OSError:
            raise refused(where, "no such file", "a file under --image-root") from None

    def _check_size(self, size: int, where: str) -> None:
        most = self._limits.file_bytes
        if size > most:
            raise refused(where, f"{size:,} bytes", f"at most {most:,}", "make it smaller")
