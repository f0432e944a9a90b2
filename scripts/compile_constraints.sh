#!/usr/bin/env bash
# Rewrite constraints.txt: one resolution for every Python that we support, with markers where
# they differ. Versions that the file already holds are kept while they fit; pass --upgrade, or
# --upgrade-package NAME, to move on. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."

torch=2.13.0  # what the measurements and the tests were made with
file=constraints.txt
resolved=$(mktemp)
trap 'rm -f "$resolved"' EXIT
grep -v '^#' "$file" > "$resolved" || true

uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate \
    --group dev --group training --output-file "$resolved" "$@" - <<END
-e .[local,remote,cache,calibration]
-e integrations/langchain[agents]
-e integrations/llama_index
hatchling
torch==$torch
END

# Editable paths are not constraints, and torch itself pins its accelerator libraries.
{
    cat <<'END'
# What was tested, for `pip install -c constraints.txt`. Written by scripts/compile_constraints.sh.
# torch has no local version here, so that a build for any accelerator fits.
END
    grep -vE '^(-e |nvidia-|cuda-|triton==)' "$resolved"
} > "$file"
