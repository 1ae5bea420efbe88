#!/usr/bin/env bash
# Everything that can be said about the code without running it. Prints each step; stops at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
bin=.venv/bin
step() { printf '\n== %s\n' "$1"; shift; "$@"; }

python_files() { git ls-files --cached --others --exclude-standard '*.py' | grep -v '^shovey_trio/v1/' | while read -r f; do [ -e "$f" ] && echo "$f"; done; }
generated_code_is_current() {
  local fresh
  fresh=$(mktemp -d)
  tools/gen_proto.sh "$fresh"
  diff -r --exclude=__pycache__ --exclude=__init__.py "$fresh/shovey_trio/v1" shovey_trio/v1
  rm -r "$fresh"
}
async_rules() {
  # ASYNC109: a deadline is a parameter where gRPC makes it one. ASYNC114, 124: handlers have their shape from an
  # interface. ASYNC9xx: optional rules that are not house style. ASYNC110 in tests: other processes set no event.
  local off=ASYNC109,ASYNC114,ASYNC124,ASYNC900,ASYNC910,ASYNC911,ASYNC912,ASYNC913
  python_files | grep -v '^tests/' | xargs "$bin/flake8-async" --disable $off
  python_files | grep '^tests/' | xargs "$bin/flake8-async" --disable $off,ASYNC110
}

step "format" "$bin/ruff" format --check .
step "ruff" "$bin/ruff" check .
step "flake8-async" async_rules
step "mypy --strict" "$bin/mypy"
step "import-linter" "$bin/lint-imports" --no-cache
step "wings" "$bin/python" tools/check_wings.py
step "buf lint" "$bin/buf" lint
step "buf format" "$bin/buf" format --diff --exit-code proto
step "generated code" generated_code_is_current
printf '\nall checks passed\n'
