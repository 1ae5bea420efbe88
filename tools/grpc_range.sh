#!/usr/bin/env bash
# The conformance suite of the gRPC bridge with the oldest grpcio and trio-asyncio that pyproject.toml admits; .venv has
# the newest. Makes .venv-grpc-oldest once, beside .venv and with its other packages. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
venv=.venv-grpc-oldest
oldest() { sed -nE "s/^ *\"$1>=([0-9.]+),.*/\1/p" pyproject.toml; }
packages=("grpcio==$(oldest grpcio)" "grpcio-status==$(oldest grpcio)" "trio-asyncio==$(oldest trio-asyncio)"
  "grpcio-health-checking==$(oldest grpcio)" "grpcio-reflection==$(oldest grpcio)")
if [ ! -f "$venv/.installed" ] || [ "$(cat "$venv/.installed")" != "${packages[*]}" ]; then
  rm -rf "$venv"
  .venv/bin/python -m venv "$venv"
  # Before the newest ones in .venv, which it sees behind its own.
  site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "${packages[@]}"
  echo "import site; site.addsitedir('$site')" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/newest.pth"
  echo "${packages[*]}" >"$venv/.installed"
fi
"$venv/bin/python" -c 'import grpc, trio_asyncio; print("grpcio", grpc.__version__, "trio-asyncio", trio_asyncio.__version__)'
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/rpc/bridge "$@"
