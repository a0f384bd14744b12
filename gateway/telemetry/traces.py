"""OpenTelemetry traces. The SDK is the extra `otel`; without it, or without the setting, spans do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

NAME = "personaplex"
"""Of the tracer, and of the service unless OTEL_SERVICE_NAME says otherwise."""


class TracesUnavailable(GatewayError):  # noqa: N818 (as in gateway.errors)
    """The packages for traces are not installed."""


def exporting_provider() -> TracerProvider:
    """Return a provider that sends spans over OTLP, as the variables OTEL_* say. Raises TracesUnavailable.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracesUnavailable(f"traces need the extra otel: pip install personaplex-triton[otel] ({error})") from None
    resource = Resource.create({"service.name": NAME}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
