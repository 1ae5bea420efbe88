#!/usr/bin/env bash
# Breaks a real fleet on loopback again and again and checks that nothing is lost, nothing runs twice and every end is
# true. Prints fault, rounds, violations; exits 1 on a violation. tools/chaos.sh [--minutes N] [--seed S] [--only FAULT]
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
export PYTHONPATH=tests
exec .venv/bin/python -m lab.chaos "$@"
