#!/usr/bin/env bash
# The main job, shown with real processes on loopback. Sets up .venv if need be. Arguments go to `shovey-trio demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
exec .venv/bin/shovey-trio demo "$@"
