"""Command-line flags of tritonserver."""

from __future__ import annotations

import contextlib
import secrets
import socket
from dataclasses import dataclass, replace
from pathlib import Path

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class TritonOptions:
    """Typed flags. All ports listen on the loopback address only: clients use the gateway.

    Attributes:
        http_port: `--http-port`, used by the gateway; 0 selects a free one.
        grpc_port: `--grpc-port`, for Triton's own tools; 0 selects a free one.
        metrics_port: `--metrics-port`; 0 selects a free one, None is `--allow-metrics=false`.
        exit_timeout: `--exit-timeout-secs`, seconds for requests in flight and open sequences after SIGTERM.
        http_threads: `--http-thread-count`.
        load_threads: `--model-load-thread-count`.
        buffer_threads: `--buffer-manager-thread-count`; 0 copies tensors in the calling thread.
        shm_bytes: `--backend-config=python,shm-default-byte-size`, initial size of each model's region in /dev/shm.
        shm_growth_bytes: `--backend-config=python,shm-growth-byte-size`.
        stub_timeout: `--backend-config=python,stub-timeout-seconds`; the published checkpoint takes minutes to load.
        log_verbose: `--log-verbose`.
        log_info: `--log-info`.
    """

    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int | None = 0
    exit_timeout: int = 5
    http_threads: int = 2
    load_threads: int = 4
    buffer_threads: int = 0
    shm_bytes: int = 4 << 20
    shm_growth_bytes: int = 1 << 20
    stub_timeout: int = 600
    log_verbose: int = 0
    log_info: bool = True

    def argv(self, binary: Path, model_repository: Path, backends: Path, shm_prefix: str) -> list[str]:
        """Return the command line. Ports must not be 0; see `with_free_ports`.

        Args:
            binary: the tritonserver executable.
            model_repository: `--model-repository`.
            backends: `--backend-directory`.
            shm_prefix: `--backend-config=python,shm-region-prefix-name`, unique to this server, so that its
                files in /dev/shm can be removed after a crash.
        """
        python = {
            "shm-region-prefix-name": shm_prefix,
            "shm-default-byte-size": self.shm_bytes,
            "shm-growth-byte-size": self.shm_growth_bytes,
            "stub-timeout-seconds": self.stub_timeout,
        }
        # The key is random and not stored: these APIs are disabled for all users of the machine.
        disabled = f"shared-memory,model-repository,trace,logging:personaplex={secrets.token_hex(16)}"
        return [
            str(binary),
            f"--model-repository={model_repository}",
            f"--backend-directory={backends}",
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            f"--http-address={LOOPBACK}",
            f"--http-port={self.http_port}",
            f"--http-thread-count={self.http_threads}",
            f"--http-restricted-api={disabled}",
            f"--grpc-address={LOOPBACK}",
            f"--grpc-port={self.grpc_port}",
            f"--grpc-restricted-protocol={disabled}",
            *self._metrics(),
            f"--exit-timeout-secs={self.exit_timeout}",
            f"--model-load-thread-count={self.load_threads}",
            f"--buffer-manager-thread-count={self.buffer_threads}",
            f"--log-verbose={self.log_verbose}",
            f"--log-info={str(self.log_info).lower()}",
            *(f"--backend-config=python,{key}={value}" for key, value in python.items()),
        ]

    def with_free_ports(self) -> TritonOptions:
        """Return a copy in which each port 0 is replaced by a free port."""
        with contextlib.ExitStack() as held:
            # All sockets stay bound until all ports are selected, so that the ports differ.
            def free() -> int:
                probe = held.enter_context(socket.socket())
                probe.bind((LOOPBACK, 0))
                return int(probe.getsockname()[1])

            return replace(
                self,
                http_port=self.http_port or free(),
                grpc_port=self.grpc_port or free(),
                metrics_port=free() if self.metrics_port == 0 else self.metrics_port,
            )

    def _metrics(self) -> list[str]:
        if self.metrics_port is None:
            return ["--allow-metrics=false"]
        return [f"--metrics-address={LOOPBACK}", f"--metrics-port={self.metrics_port}"]
