"""`python -m gateway.api.grpc.generate`: regenerate the Python code of personaplex.proto; needs grpcio-tools."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent
PROTO = Path("personaplex/v1/personaplex.proto")
GENERATED = tuple(PROTO.with_name(f"personaplex_{suffix}") for suffix in ("pb2.py", "pb2.pyi", "pb2_grpc.py"))

# Generated code is neither edited nor linted.
_LEAVE_ALONE = "# ruff: noqa\n# fmt: off\n# mypy: ignore-errors\n"
_PACKAGE = "gateway.api.grpc."


def generate(folder: Path = ROOT) -> None:
    """Write GENERATED below `folder`. Raises RuntimeError if the .proto does not compile."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *outputs, str(PROTO)]) != 0:
        raise RuntimeError(f"{PROTO} does not compile")
    for path in GENERATED:
        code = (folder / path).read_text()
        # protoc derives module names from the .proto's path, which is relative to ROOT, so that the protobuf package
        # does not contain the Python package.
        code = code.replace("from personaplex.v1 import", f"from {_PACKAGE}personaplex.v1 import")
        (folder / path).write_text(_LEAVE_ALONE + code)


if __name__ == "__main__":
    generate()
    sys.stdout.write("".join(f"{ROOT / path}\n" for path in GENERATED))
