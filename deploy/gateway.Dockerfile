# The gateway, with an embedded Triton for models on the CPU:
#   docker build --file deploy/gateway.Dockerfile --tag personaplex-gateway .
#   docker run --init --shm-size 256m --stop-timeout 60 --volume MODELS:/models \
#       --publish 8998:8998 --publish 8999:8999 personaplex-gateway
# The stop timeout must exceed the drain time (`serve --drain`, 30 s by default).
FROM python:3.12-slim-bookworm AS build
WORKDIR /source
# The libraries first: a change of the sources installs none of them again. The lock is complete. --no-deps: nvidia-pytriton,
# which only carries the Triton binary, requires an older NumPy.
COPY requirements.lock requirements-dev.lock requirements-build.lock ./
RUN grep -E '^(opentelemetry-|googleapis-common-protos)' requirements-dev.lock > otel.txt \
    && python -m venv /opt/personaplex \
    && /opt/personaplex/bin/pip install --no-cache-dir --no-deps --requirement requirements.lock --requirement otel.txt \
    && /opt/personaplex/bin/pip install --no-cache-dir --no-deps --target /build --requirement requirements-build.lock
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY gateway gateway
COPY model_repository model_repository
RUN PYTHONPATH=/build /opt/personaplex/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --create-home personaplex
COPY --from=build /opt/personaplex /opt/personaplex
ENV PATH=/opt/personaplex/bin:$PATH \
    PERSONAPLEX_HOST=0.0.0.0
USER 10001
WORKDIR /home/personaplex
EXPOSE 8998 8999
# Loading the published checkpoint takes minutes.
COPY deploy/ready.py /opt/personaplex/ready.py
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 CMD ["python", "/opt/personaplex/ready.py"]
ENTRYPOINT ["personaplex"]
CMD ["serve", "/models"]
