#!/usr/bin/env bash
# Makes oracle.npz anew, in an environment of its own under build/oracle (needs Python 3.11 and about 2 GB of disk).
set -euo pipefail
cd "$(dirname "$0")/../.."
environment=build/oracle
if [ ! -x "$environment/bin/python" ]; then
    python3.11 -m venv "$environment"
    "$environment/bin/pip" install --quiet torch==2.13.0
    "$environment/bin/pip" install --quiet --no-deps moshi==0.2.13
    "$environment/bin/pip" install --quiet einops==0.8.2 "sphn>=0.2,<0.3" "huggingface-hub<1" \
        sentencepiece safetensors soundfile pyloudnorm ml-dtypes numpy
fi
exec "$environment/bin/python" -m tests.oracle.generate
