#!/usr/bin/env bash
# What got slower since a commit: `shovey-trio bench` with its code and with this checkout's, in turns, in one run,
# because a shared machine's figures can only be compared with those of the same minutes. Both use this checkout's
# .venv, so the commit must get by with the packages of today.
# usage: tools/bench-compare.sh [--turns N] [--base COMMIT] [SCENARIO…] [other options of `shovey-trio bench`]
# Prints every figure's ratio; exits 1 when one got slower than --worse (1.15) and the turns' ranges do not overlap.
set -euo pipefail
cd "$(dirname "$0")/.."
turns=3 base=HEAD worse=1.15 arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --turns) turns=$2; shift 2 ;;
    --base) base=$2; shift 2 ;;
    --worse) worse=$2; shift 2 ;;
    -h | --help) sed -n '2,6p' "$0" | cut -c3-; exit 0 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
[ ${#arguments[@]} -gt 0 ] || arguments=(fanout submit latency --agents 200 --rounds 3)
tools/setup.sh

work=$(mktemp -d)
cleanup() { git worktree remove --force "$work/base" 2>/dev/null || true; rm -rf "$work"; }
trap cleanup EXIT
git worktree add --quiet --detach "$work/base" "$base"
# An interpreter with .venv's packages and none of its scripts beside it: those start modules of this checkout, and the
# benchmark starts the programs of its own tree where it finds no script.
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
.venv/bin/python -m venv --without-pip "$work/env"
echo "import site; site.addsitedir('$(site .venv/bin/python)')" >"$(site "$work/env/bin/python")/packages.pth"
# The program's place in the tree that is measured: up to 4a4340d it is another.
program='from importlib.util import find_spec
if find_spec("shovey_trio.daemon"): from shovey_trio.cli.daemon import main
else: from shovey_trio.cli.controller.main import main
main()'
measure() { # TREE RESULT
  # Paths in PYTHONPATH come before the checkout that .venv knows, and nothing comes before them: not the working
  # directory either. Every process of the benchmark inherits both.
  PYTHONSAFEPATH=1 PYTHONPATH="$1:$1/agent:$1/tests" "$work/env/bin/python" -c "$program" \
    bench "${arguments[@]}" --json "$2" >"$2.log" 2>&1 || { cat "$2.log" >&2; exit 2; }
}
for turn in $(seq "$turns"); do
  echo "turn $turn of $turns" >&2
  measure "$work/base" "$work/before-$turn.json"
  measure "$PWD" "$work/after-$turn.json"
done
.venv/bin/python bench/compare.py --worse "$worse" --before "$work"/before-*.json --after "$work"/after-*.json
