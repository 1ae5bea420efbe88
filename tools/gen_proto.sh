#!/usr/bin/env bash
# Generates shovey_trio/v1 from proto/. The result is committed; tests/core/test_generated_code.py compares.
# Usage: tools/gen_proto.sh [OUTPUT_ROOT]   (default: the project itself)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-.}
python=${PYTHON:-.venv/bin/python}
bin=$(dirname "$(command -v "$python" || echo "$python")")
mkdir -p "$out"
# shellcheck disable=SC2046
"$python" -m grpc_tools.protoc \
  --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" \
  --proto_path=proto --python_out="$out" --mypy_out=quiet:"$out" \
  --grpc_python_out="$out" \
  $(find proto -name '*.proto' | LC_ALL=C sort)
