"""Certificate and key of a server that speaks TLS."""

import dataclasses
import ssl
from pathlib import Path

from ziggurat.core.errors import ServeError


@dataclasses.dataclass(frozen=True)
class Tls:
    """Paths of a server's certificate chain and its key, both PEM."""

    certificate: Path
    key: Path

    def read(self) -> tuple[bytes, bytes]:
        """Read and check certificate and key.

        Raises:
            ServeError: a file cannot be read, or the two do not belong together.
        """
        try:
            content = self.certificate.read_bytes(), self.key.read_bytes()
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                self.certificate, self.key, password=""
            )
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ServeError(
                f"TLS certificate {self.certificate} with key {self.key}",
                found=getattr(error, "strerror", None) or error,
                expected="a certificate and its key without a password, both PEM",
            ) from None
        return content
