from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.triton_server import TritonInstallation, TritonNotInstalledError, installation

MINOR = f"3.{sys.version_info.minor}"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the wheel's layout and empty files. `find` uses it instead of the real one."""
    wheel = tmp_path / "pytriton"
    for name in (
        "tritonserver/bin/tritonserver",
        "tritonserver/backends/python/libtriton_python.so",
        f"tritonserver/python_backend_stubs/{MINOR}/triton_python_backend_stub",
    ):
        path = wheel / name
        path.parent.mkdir(parents=True)
        path.touch(mode=0o755)
    (tmp_path / "nvidia_pytriton.libs").mkdir()
    monkeypatch.setattr(installation, "_wheel_folder", lambda: wheel)
    return wheel


def test_all_parts_are_found_in_the_running_environment() -> None:
    found = TritonInstallation.find()
    assert found.binary.name == "tritonserver"
    assert found.stub.parent.name == MINOR


def test_the_error_for_a_missing_wheel_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TritonNotInstalledError, match=r"pip install --no-deps nvidia-pytriton==.* or use --triton"):
        TritonInstallation.find()


@pytest.mark.parametrize(
    "missing", ["tritonserver/bin/tritonserver", "tritonserver/backends/python/libtriton_python.so"]
)
def test_the_error_names_a_missing_part(wheel: Path, missing: str) -> None:
    (wheel / missing).unlink()
    with pytest.raises(TritonNotInstalledError, match=f"{missing}.*force-reinstall"):
        TritonInstallation.find()


def test_a_binary_that_is_not_executable_is_an_error(wheel: Path) -> None:
    (wheel / "tritonserver/bin/tritonserver").chmod(0o644)
    with pytest.raises(TritonNotInstalledError, match=r"not executable: chmod \+x"):
        TritonInstallation.find()


def test_the_error_for_a_missing_stub_lists_the_others(wheel: Path) -> None:
    stubs = wheel / "tritonserver/python_backend_stubs"
    (stubs / MINOR).rename(stubs / "3.9")
    (stubs / "3.10").mkdir()
    with pytest.raises(TritonNotInstalledError, match=rf"no stub for Python {MINOR} \(it has 3\.9, 3\.10\)"):
        TritonInstallation.find()


def test_the_error_for_a_missing_libpython_names_the_package(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr(installation.sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(installation.ctypes.util, "find_library", lambda name: None)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with pytest.raises(TritonNotInstalledError, match=rf"libpython{MINOR}\.so.*apt-get install libpython{MINOR}"):
        TritonInstallation.find()


def test_a_libpython_on_the_loaders_path_needs_no_folder(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr(installation.sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(installation.ctypes.util, "find_library", lambda name: f"libpython{MINOR}.so.1.0")
    assert TritonInstallation.find().libpython is None


def test_a_libpython_in_the_wheel_needs_no_folder(wheel: Path) -> None:
    (wheel.parent / "nvidia_pytriton.libs" / f"libpython3-0123abcd.{sys.version_info.minor}.so.1.0").touch()
    assert TritonInstallation.find().libpython is None


def test_own_paths_precede_those_of_the_environment() -> None:
    found = TritonInstallation(Path("b"), Path("p"), Path("s"), Path("/wheel/libs"), Path("/python/lib"))
    environment = found.environment({"LD_LIBRARY_PATH": "/mine", "PATH": "/also-mine", "OTHER": "1"})
    assert environment["LD_LIBRARY_PATH"] == "/python/lib:/wheel/libs:/mine"
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/also-mine"
    assert environment["OTHER"] == "1"


@pytest.mark.parametrize(
    ("set_by_the_user", "expected"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": ""}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.perturb=1"}, "glibc.malloc.perturb=1:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
    ],
)
def test_huge_pages_are_enabled_unless_configured(set_by_the_user: dict[str, str], expected: str) -> None:
    found = TritonInstallation(Path("b"), Path("p"), Path("s"), Path("/wheel/libs"), None)
    assert found.environment(set_by_the_user)["GLIBC_TUNABLES"] == expected
