#!/usr/bin/env bash
# Which changes of the code no test would notice: mutmut makes hundreds of small ones and runs the nearest tests on each.
# usage: tools/mutate.sh [SCOPE…]     scopes: gate nonces trust whitelist jobs spool (all)
# It works on the last commit. For each scope it prints how many mutants were killed, and those that live and have no
# line in tools/mutants.txt, which gives the reason for each that may; ends with 1 when a scope is below 95 %.
#
# Not counted at all, because people read them and no test should repeat them word by word: mutants that only change
# text, that is a string literal with a space in it (tools/mutants.py looks at the difference), and lines of logs and
# failpoints. A mutant that never ends counts as killed.
#
# 1 to 3 mutants a second and processor: an hour or more for all scopes, so CI does not run it.
set -euo pipefail
cd "$(dirname "$0")/.."
mutmut=3.8.1
core=shovey_trio/core agent=shovey_agent
declare -A sources=(
  [gate]="$agent/desk/gate.py"
  [nonces]="$agent/desk/nonces.py"
  [trust]="$core/trust/*.py"
  [whitelist]="$core/whitelist/*.py"
  [jobs]="$core/jobs/*.py"
  [spool]="$agent/run/spool.py"
)
declare -A tests=(
  [gate]="tests/agent/test_gate.py"
  [nonces]="tests/agent/test_nonces.py"
  [trust]="tests/core/test_attempt_limits.py tests/core/test_authz.py tests/core/test_enrollment.py
    tests/core/test_grants.py tests/core/test_key_rotation.py tests/core/test_key_sets.py tests/core/test_key_trust.py
    tests/core/test_order_signing.py tests/core/test_orders.py tests/core/test_rights.py"
  [whitelist]="tests/core/test_whitelist.py tests/core/test_whitelist_entry.py tests/core/test_whitelist_permit.py
    tests/core/test_whitelist_proof.py"
  [jobs]="tests/core/test_command_input.py tests/core/test_job_machine.py tests/core/test_output.py
    tests/core/test_quorum.py tests/core/test_run_machine.py tests/core/test_search.py tests/core/test_states.py
    tests/core/test_targeting.py"
  [spool]="tests/agent/test_spool.py"
)
case ${1:-} in -h | --help) sed -n '2,5p' "$0" | cut -c3-; exit 0 ;; esac
[ $# -gt 0 ] || set -- gate nonces trust whitelist jobs spool
for scope; do [ -n "${sources[$scope]:-}" ] || { echo "no scope $scope: ${!sources[*]}" >&2; exit 2; }; done
tools/setup.sh

work=$(mktemp -d)
cleanup() { git worktree remove --force "$work/tree" 2>/dev/null || true; rm -rf "$work"; }
trap cleanup EXIT
git worktree add --quiet --detach "$work/tree" HEAD
# mutmut stays out of .venv: an environment of its own, with the packages of that one.
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
.venv/bin/python -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check "mutmut==$mutmut"
echo "import site; site.addsitedir('$(site .venv/bin/python)')" >"$(site "$work/env/bin/python")/packages.pth"

lines() { printf '    %s\n' "$@"; }
cp tools/mutants.txt "$work/kept"
report=$PWD/tools/mutants.py
cd "$work/tree"
mv agent/shovey_agent . # mutmut takes a file's path for its module's name
status=0
for scope; do
  rm -rf mutants
  {
    printf '[mutmut]\nuse_git_change_detection=false\n'
    printf 'source_paths=\n' && lines shovey_trio shovey_agent
    printf 'only_mutate=\n' && (set -f; lines ${sources[$scope]})
    printf 'also_copy=\n' && lines proto tools
    printf 'do_not_mutate_patterns=\n' && lines '^\s*_log\.' '^\s*failpoints\.'
    printf 'pytest_add_cli_args_test_selection=\n' && lines ${tests[$scope]}
    printf 'pytest_add_cli_args=\n' && lines -p no:cacheprovider
  } >setup.cfg
  nice -n 15 "$work/env/bin/mutmut" run >"$work/log" 2>&1 || { tail -n 50 "$work/log" >&2; exit 2; }
  "$work/env/bin/python" "$report" "$scope" "$work/kept" || status=1
done
exit $status
