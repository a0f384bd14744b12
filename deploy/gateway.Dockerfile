# The gateway, with an embedded Triton for models on the CPU:
#   docker build --file deploy/gateway.Dockerfile --tag personaplex-gateway .
#   docker run --init --shm-size 256m --stop-timeout 60 --volume MODELS:/models \
#       --publish 8998:8998 --publish 8999:8999 personaplex-gateway
# The stop timeout must exceed the drain time (`serve --drain`, 30 s by default).
FROM python:3.12-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml setup.py requirements.lock requirements-dev.lock README.md LICENSE NOTICE ./
COPY gateway gateway
COPY loadtest loadtest
COPY model_repository model_repository
# nvidia-pytriton is used for its Triton binary only. Its dependencies, among them an older NumPy, are not installed.
RUN python -m venv /opt/personaplex \
    && /opt/personaplex/bin/pip install --no-cache-dir --constraint requirements.lock --constraint requirements-dev.lock ".[cpu,otel]" \
    && grep '^nvidia-pytriton==' requirements.lock > pytriton.txt \
    && /opt/personaplex/bin/pip install --no-cache-dir --no-deps --requirement pytriton.txt

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
