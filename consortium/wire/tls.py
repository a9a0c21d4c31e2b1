"""TLS for servers whose certificate and trusted roots may change while they listen."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc


@dataclass(frozen=True, slots=True)
class Shown:
    """What a server shows, and by which roots it knows who connects; all PEM."""

    key_pem: bytes
    certificate_pem: bytes
    roots_pem: bytes | None = None
    """None: nobody is asked for a certificate."""

    @property
    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self.key_pem, self.certificate_pem)], self.roots_pem
        )


def server_credentials(current: Callable[[], Shown]) -> grpc.ServerCredentials:
    """Credentials that follow `current`, which is asked at every handshake.

    gRPC is answered only when something has changed. Its core (1.83) frees what it is given up for
    while a handshake on another thread may still use it, which ends the process: with an answer at
    every handshake, a few clients that connect at the same moment are enough. So is, in theory,
    one that connects in the very moment of a change.
    """
    last = current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal last
        now = current()
        if now == last:
            return None
        last = now
        return now._configuration

    return grpc.dynamic_ssl_server_credentials(
        last._configuration,
        changed,  # type: ignore[arg-type]  # None for no change: the stubs do not know it
        require_client_authentication=last.roots_pem is not None,
    )
