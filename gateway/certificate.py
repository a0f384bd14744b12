"""The certificate of both ports, read again when its files change. Connections that exist keep the one they have."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc

from gateway.file_watch import FileWatch
from gateway.settings import TlsFiles

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Reloaded(Generic[T]):
    """What `read` makes of the files. Files that cannot be used, such as another certificate's key, change nothing."""

    def __init__(self, files: TlsFiles, read: Callable[[], T]) -> None:
        """Raises OSError, as `current` never does."""
        self._files = files
        self._read = read
        self._watch = FileWatch(*files)
        self._current = read()

    def current(self) -> T:
        if self._watch.changed():
            try:
                self._current = self._read()
            except OSError as error:
                logger.error("the certificate stays as it was: %s: %s", self._files.certificate, error)
            else:
                logger.info("read the certificate %s", self._files.certificate)
        return self._current


def server_context(files: TlsFiles, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Return a context for a server whose handshakes use the newest context of `make`. Raises OSError."""
    reloaded = _Reloaded(files, make)

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = reloaded.current()

    context = make()
    # It is called at each handshake, also without a server name.
    context.sni_callback = choose
    return context


def grpc_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials for a gRPC server, whose handshakes use the files as they are. Raises OSError."""

    def read() -> grpc.ServerCertificateConfiguration:
        pair = files.key.read_bytes(), files.certificate.read_bytes()
        # gRPC reports no reason for files that it cannot use.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)
        return grpc.ssl_server_certificate_configuration([pair])

    reloaded = _Reloaded(files, read)
    return grpc.dynamic_ssl_server_credentials(reloaded.current(), reloaded.current)
