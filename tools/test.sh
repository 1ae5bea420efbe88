#!/usr/bin/env bash
# All tests, with what they need. Arguments go to pytest; `--quick` as the first one leaves out what needs serf,
# goiardi or more than five seconds. Says what cannot be installed and is therefore skipped; with CI=true a skipped
# test is a failed one (tests/conftest.py).
set -euo pipefail
cd "$(dirname "$0")/.."

selection=()
if [ "${1:-}" = --quick ]; then
  shift
  selection=(-m "not serf and not goiardi and not slow")
fi

can_install() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

# Packages whose services must not start: the tests start what they need themselves, on ports of their own.
install_packages() {
  local policy=/usr/sbin/policy-rc.d made_policy=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made_policy=1
  fi
  echo "installing from Debian: $*" >&2
  local log failed=
  log=$(mktemp)
  # The cache of a fresh machine is empty or old, so the lists come first.
  { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "$@"; } \
    >"$log" 2>&1 </dev/null || failed=1
  if [ -n "$failed" ]; then
    tail -n 5 "$log" >&2
    echo "could not install $*" >&2
  fi
  rm -f "$log"
  [ -z "$made_policy" ] || rm -f "$policy"
}

# Fills `missing` (packages) and `skipped` (what their absence costs).
look_for_programs() {
  missing=() skipped=()
  need serf serf "the tests with real serf agents"
  need node nodejs "the test of the Node.js example"
  need npm npm "the test of the Node.js example"
  need ruby ruby "the tests with knife's own signing code"
  ruby -e 'require "openssl"; require "mixlib/authentication/signedheaderauth"' 2>/dev/null || {
    missing+=(ruby-mixlib-authentication)
    skipped+=("ruby-mixlib-authentication is not installed, so the tests with knife's own signing code cannot run")
  }
  # Only when there are such tests: the package is a whole server.
  if grep -rqE 'mark\.goiardi' tests --include='test_*.py'; then
    need goiardi goiardi "the tests beside a real goiardi"
  fi
}
need() { # PROGRAM PACKAGE WHAT
  command -v "$1" >/dev/null || { missing+=("$2") && skipped+=("$1 is not installed, so $3 cannot run"); }
}

if [ ${#selection[@]} -eq 0 ]; then
  look_for_programs
  if [ ${#missing[@]} -gt 0 ] && can_install; then
    install_packages "${missing[@]}"
    look_for_programs
  fi
  for reason in "${skipped[@]+"${skipped[@]}"}"; do echo "$reason" >&2; done
fi

tools/setup.sh
exec .venv/bin/python -m pytest "${selection[@]+"${selection[@]}"}" "$@"
