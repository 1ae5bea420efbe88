#!/usr/bin/env bash
# The numbers that the README quotes. Sets up .venv if need be. Arguments go to bench/latency.py.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
exec .venv/bin/python bench/latency.py "$@"
