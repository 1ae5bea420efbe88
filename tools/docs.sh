#!/usr/bin/env bash
# The documentation as HTML, every warning an error. Usage: tools/docs.sh [OUTPUT]   (default: build/docs)
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
.venv/bin/python -c 'import furo, myst_parser, sphinx' 2>/dev/null ||
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
.venv/bin/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs "${1:-build/docs}"
echo "built ${1:-build/docs}/index.html"
