# Triton on a GPU, with the Python packages of the models:
#   docker build --file deploy/models.Dockerfile --tag personaplex-models .
# 25.08 is the first release with CUDA 13 (13.0, driver 580 or newer); it has Python 3.12. onnxruntime-gpu is built for
# CUDA 13.0 and cuDNN 9, which requirements-gpu.txt installs independently of the image.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS operators
COPY model_repository/serving/native /source
RUN /source/compile_cuda.sh

FROM nvcr.io/nvidia/tritonserver:25.08-py3
LABEL org.opencontainers.image.title="personaplex-models" \
      org.opencontainers.image.description="Triton on a GPU with the Python packages of PersonaPlex's models"
COPY deploy/requirements-gpu.txt /opt/personaplex/requirements.txt
RUN python3 -m pip install --no-cache-dir --no-deps --only-binary :all: \
        --target /opt/personaplex/packages --requirement /opt/personaplex/requirements.txt
COPY model_repository /opt/personaplex/model_repository
COPY --from=operators /source/int8_kv_attention.so /opt/personaplex/model_repository/serving/native/
COPY --chmod=755 deploy/serve-models.sh /opt/personaplex/serve-models.sh
ENV PYTHONPATH=/opt/personaplex/packages:/opt/personaplex
# `triton-server` of NVIDIA's image.
USER 1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["/opt/personaplex/serve-models.sh"]
