#!/bin/sh
# Triton with the flags the gateway gives an embedded one, for the network it shares with the gateway alone.
set -eu
# Nobody holds this key: what it guards stays shut.
key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
shut="shared-memory,model-repository,trace,logging:personaplex=$key"
exec tritonserver \
    --model-repository="${MODELS:-/models}/triton" \
    --model-control-mode=none \
    --disable-auto-complete-config \
    --http-port=8000 \
    --http-thread-count=2 \
    --http-restricted-api="$shut" \
    --grpc-port=8001 \
    --grpc-restricted-protocol="$shut" \
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
