from __future__ import annotations

from pathlib import Path

from gateway.triton_server import TritonOptions


def argv(options: TritonOptions) -> list[str]:
    return options.argv(Path("/bin/tritonserver"), Path("/models/triton"), Path("/backends"), "prefix_")


def test_ports_and_timeouts_become_flags() -> None:
    flags = argv(TritonOptions(grpc_port=8001, metrics_port=8002, exit_timeout=7))
    assert flags[0] == "/bin/tritonserver"
    for flag in (
        "--grpc-port=8001",
        "--metrics-port=8002",
        "--exit-timeout-secs=7",
        "--model-repository=/models/triton",
    ):
        assert flag in flags


def test_metrics_can_be_disabled() -> None:
    flags = argv(TritonOptions(grpc_port=8001, metrics_port=None))
    assert "--allow-metrics=false" in flags
    assert not any(flag.startswith("--metrics-") for flag in flags)


def test_models_cannot_be_loaded_or_unloaded_over_the_api() -> None:
    flags = argv(TritonOptions(grpc_port=1))
    assert {"--model-control-mode=none", "--disable-auto-complete-config"} <= set(flags)


def test_the_python_backend_gets_its_shared_memory_settings() -> None:
    flags = argv(TritonOptions(grpc_port=1, shm_bytes=123, shm_growth_bytes=45, stub_timeout=6))
    settings = [flag.removeprefix("--backend-config=python,") for flag in flags if "--backend-config=python" in flag]
    assert settings == [
        "shm-region-prefix-name=prefix_",
        "shm-default-byte-size=123",
        "shm-growth-byte-size=45",
        "stub-timeout-seconds=6",
    ]


def test_the_key_of_disabled_apis_is_random() -> None:
    shut = [[f for f in argv(TritonOptions(grpc_port=1)) if "restricted" in f] for _ in range(2)]
    assert shut[0] != shut[1]
    for flags in shut:
        assert [flag.partition("=")[0] for flag in flags] == ["--http-restricted-api", "--grpc-restricted-protocol"]
        assert all("shared-memory,model-repository,trace,logging:" in flag for flag in flags)


def test_free_ports_replace_zeros_only() -> None:
    chosen = TritonOptions(http_port=0, grpc_port=0, metrics_port=0).with_free_ports()
    assert len({chosen.http_port, chosen.grpc_port, chosen.metrics_port, 0}) == 4
    given = TritonOptions(http_port=4, grpc_port=5, metrics_port=None)
    assert given.with_free_ports() == given
