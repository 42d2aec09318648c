#!/usr/bin/env bash
# What one GPU says of this project, without a network: versions, exactness, decode speed, two steps of every trainer, the quickstart.
#   scripts/gpu_proof.sh --out DIR [--parts versions,exactness,decode,trainers,quickstart] [--minutes 6] [--size full|tiny]
# Results are appended to DIR/proof.json as they come; DIR/proof.md is the table at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" scripts/gpu_proof.py "$@"
