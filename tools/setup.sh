#!/usr/bin/env bash
# Makes .venv with the project and its development tools, if it is not there or pyproject.toml has changed since.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/.installed
wanted=$(sha256sum pyproject.toml | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0
python=${SHOVEY_PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "shovey-trio needs Python 3.11 or newer; set SHOVEY_PYTHON to one" >&2
  exit 1
}
echo "setting up .venv (once, about a minute)" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' 2> >(grep -v '^WARNING: Location' >&2)
echo "$wanted" >"$stamp"
