# Triton's server and Python backend on a GPU, with the Python packages of the models:
#   docker build --file deploy/models.Dockerfile --tag personaplex-models .
# 25.08 is the first release with CUDA 13 (13.0, driver 580 or newer); its Python backend is for Python 3.12, on Ubuntu 24.04
# with glibc 2.39. onnxruntime-gpu is built for CUDA 13.0 and cuDNN 9, which requirements-gpu.txt installs.
FROM nvcr.io/nvidia/tritonserver:25.08-py3 AS triton
COPY deploy/copy-triton.sh /copy-triton.sh
RUN sh /copy-triton.sh /opt/tritonserver /copy

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS operators
COPY model_repository/serving/native /source
RUN /source/compile_cuda.sh

FROM python:3.12-slim-trixie
LABEL org.opencontainers.image.title="personaplex-models" \
      org.opencontainers.image.description="Triton on a GPU with the Python packages of PersonaPlex's models"
RUN useradd --system --uid 10001 personaplex
COPY deploy/requirements-gpu.txt /opt/personaplex/requirements.txt
RUN pip install --no-cache-dir --no-deps --only-binary :all: --requirement /opt/personaplex/requirements.txt
COPY --from=triton /copy /opt/tritonserver
COPY model_repository /usr/local/lib/python3.12/site-packages/model_repository
COPY --from=operators /source/int8_kv_attention.so \
    /usr/local/lib/python3.12/site-packages/model_repository/serving/native/
COPY --chmod=755 deploy/serve-models.sh /opt/personaplex/serve-models.sh
# The container runtime mounts the driver that these ask for.
ENV PATH=/opt/tritonserver/bin:$PATH \
    LD_LIBRARY_PATH=/opt/tritonserver/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["/opt/personaplex/serve-models.sh"]
