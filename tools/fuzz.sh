#!/usr/bin/env bash
# Fuzzes decoders, coverage-guided: tools/fuzz.sh [--seconds N | --runs N] [--corpus DIR] [--list] [TARGET…]
# All targets, 60 s each, when nothing is said. One process per target, one after the other; each has 1 GiB and 20 s for
# an input. Ends with 1 when there was a find; the input that did it is named, and `--input FILE TARGET` tries it again.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
export PYTHONPATH=tests
exec .venv/bin/python -m fuzz "$@" 2> >(grep -v '^INFO: Instrumenting ' >&2)
