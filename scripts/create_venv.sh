#!/bin/sh
# Make a virtual environment with the first interpreter that is new enough, and a pip that knows
# dependency groups. PYTHON names an interpreter instead.
set -eu
venv=$1

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

find_python() {
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if new_enough "$name"; then
            echo "$name"
            return
        fi
    done
    echo "no Python 3.10 or newer among: ${PYTHON:-python3, python3.10 to python3.13, python}." >&2
    echo "Install one, or name one: make PYTHON=/path/to/python3 …" >&2
    return 1
}

python=$(find_python)
"$python" -c 'import ensurepip, venv' 2>/dev/null || {
    echo "$python cannot make virtual environments: it lacks the modules venv or ensurepip." >&2
    echo "Debian and Ubuntu have them in the package python3-venv." >&2
    exit 1
}
echo "Creating $venv with $("$python" --version) …"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
