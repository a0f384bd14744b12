# Two images. The gateway, for a Triton that runs elsewhere (the last stage, which is the default):
#   docker build --file deploy/gateway.Dockerfile --tag personaplex-gateway .
# The same with ONNX Runtime and a Triton for CPUs. It serves alone, and builds models and voices:
#   docker build --file deploy/gateway.Dockerfile --target cpu --tag personaplex-cpu .
#   docker run --init --shm-size 256m --stop-timeout 60 --volume MODELS:/models \
#       --publish 8998:8998 --publish 8999:8999 personaplex-cpu
# The stop timeout must exceed the drain time (`serve --drain`, 30 s by default).

# The libraries are layers below the project: a change of the sources installs none of them again. The locks are complete.
# --no-deps: nvidia-pytriton, which only carries the Triton binary, requires an older NumPy.
FROM python:3.12-slim-trixie AS libraries
WORKDIR /source
COPY requirements.lock requirements-dev.lock ./
RUN grep -E '^(onnx|sympy|mpmath|flatbuffers|gguf|huggingface-hub|hf-xet|nvidia-pytriton)' requirements.lock > cpu.txt \
    && grep -vxFf cpu.txt requirements.lock > gateway.txt \
    && grep -E '^(opentelemetry-|googleapis-common-protos)' requirements-dev.lock > otel.txt \
    && python -m venv /opt/personaplex \
    && /opt/personaplex/bin/pip install --no-cache-dir --no-deps --requirement gateway.txt --requirement otel.txt

FROM libraries AS cpu-libraries
RUN /opt/personaplex/bin/pip install --no-cache-dir --no-deps --requirement cpu.txt

FROM python:3.12-slim-trixie AS project
WORKDIR /source
COPY requirements-build.lock ./
RUN pip install --no-cache-dir --no-deps --requirement requirements-build.lock
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY gateway gateway
COPY model_repository model_repository
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.12-slim-trixie AS service
RUN useradd --system --uid 10001 --create-home personaplex
ENV PATH=/opt/personaplex/bin:$PATH \
    PERSONAPLEX_HOST=0.0.0.0
WORKDIR /home/personaplex
EXPOSE 8998 8999
# Loading the published checkpoint takes minutes.
COPY deploy/ready.py /opt/ready.py
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 CMD ["python", "/opt/ready.py"]
ENTRYPOINT ["personaplex"]
CMD ["serve", "/models"]

FROM service AS cpu
LABEL org.opencontainers.image.title="personaplex-cpu" \
      org.opencontainers.image.description="PersonaPlex gateway with ONNX Runtime and Triton for CPUs; builds models and voices"
COPY --from=cpu-libraries /opt/personaplex /opt/personaplex
RUN --mount=type=bind,from=project,source=/wheels,target=/wheels pip install --no-cache-dir --no-deps /wheels/*.whl
USER 10001

FROM service AS gateway
LABEL org.opencontainers.image.title="personaplex-gateway" \
      org.opencontainers.image.description="PersonaPlex gateway: REST, gRPC and WebSocket APIs in front of Triton"
COPY --from=libraries /opt/personaplex /opt/personaplex
RUN --mount=type=bind,from=project,source=/wheels,target=/wheels pip install --no-cache-dir --no-deps /wheels/*.whl
USER 10001
