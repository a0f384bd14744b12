"""Write the gateway's settings into the chart's values.schema.json: `python deploy/helm/settings_schema.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.settings import Settings

SCHEMA = Path(__file__).parent / "personaplex" / "values.schema.json"

OTHER_VALUES = frozenset(
    {
        "api_keys",
        "api_keys_file",
        "drain_seconds",
        "grpc_port",
        "host",
        "models",
        "plivo_auth_tokens",
        "port",
        "tls_certificate",
        "tls_key",
        "triton_url",
        "twilio_auth_tokens",
        "vonage_signature_secrets",
    }
)
"""Settings that the chart derives from values of its own, and secrets, which `gateway.extraEnv` takes from Secrets."""


def settings_schema() -> dict[str, Any]:
    """Return the JSON schema of the value `settings`: types, bounds and descriptions, by name."""
    return {
        name: {key: value for key, value in schema.items() if key not in ("title", "default")}
        for name, schema in Settings.model_json_schema()["properties"].items()
        if name not in OTHER_VALUES
    }


if __name__ == "__main__":
    document = json.loads(SCHEMA.read_text())
    document["properties"]["settings"]["properties"] = settings_schema()
    SCHEMA.write_text(json.dumps(document, indent=2) + "\n")
