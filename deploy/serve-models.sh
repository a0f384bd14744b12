#!/bin/sh
# Run Triton with the flags of the embedded one, on a network that it shares with the gateway only.
set -eu
# The key is random and not stored: these APIs are disabled.
key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
disabled="shared-memory,model-repository,trace,logging:personaplex=$key"
exec tritonserver \
    --model-repository="${MODELS:-/models}/triton" \
    --model-control-mode=none \
    --disable-auto-complete-config \
    --http-port=8000 \
    --http-thread-count=2 \
    --http-restricted-api="$disabled" \
    --grpc-port=8001 \
    --grpc-restricted-protocol="$disabled" \
    --metrics-port=8002 \
    --exit-timeout-secs=40 \
    --model-load-thread-count=4 \
    --buffer-manager-thread-count=0 \
    --log-verbose=0 \
    --log-info=true \
    --backend-config=python,shm-default-byte-size=4194304 \
    --backend-config=python,shm-growth-byte-size=1048576 \
    --backend-config=python,stub-timeout-seconds=600 \
    "$@"
