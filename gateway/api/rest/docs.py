"""The documentation page `/docs`: the OpenAPI document as plain HTML, without scripts or anything from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{border:1px solid #ccc;padding:.3rem .5rem;text-align:left;"
    "vertical-align:top}code{font-family:ui-monospace,monospace}section{margin:2.5rem 0}"
)


def page(document: dict[str, Any]) -> str:
    """Render an OpenAPI document."""
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    info = document["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>' + "".join(operations) + "</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<section><h2><code>{method.upper()} {escape(path)}</code></h2><p>{_text(operation, 'summary')}</p>"]
    if "description" in operation:
        parts.append(f"<p>{_text(operation, 'description')}</p>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>Body: <code>{escape(kind)}</code></h3>{_fields(content['schema'])}")
    rows = [
        f"<tr><td>{escape(status)}<td>{_text(response, 'description')}"
        f"<td>{escape(', '.join(response.get('content', ())))}"
        for status, response in operation["responses"].items()
    ]
    parts.append(f"<h3>Responses</h3><table><tr><th>status<th>description<th>types{''.join(rows)}</table></section>")
    return "".join(parts)


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}"
        f"<td>{escape(_type(field))}<td>{_text(field, 'description')}"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table><tr><th>field<th>type<th>description{''.join(rows)}</table>"


def _type(field: dict[str, Any]) -> str:
    value = field["anyOf"][0] if "anyOf" in field else field
    kind = str(value.get("format", value.get("type", "")))
    if "enum" in value:
        kind = ", ".join(map(str, value["enum"]))
    return f"{kind}; default {field['default']}" if "default" in field else kind


def _text(found: dict[str, Any], name: str) -> str:
    return escape(str(found.get(name, "")))
