#!/usr/bin/env bash
# Style check and tests. Arguments go to pytest, e.g.  ./test.sh tests/test_palette.py   or   ./test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")"
source kit/environment.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
case " $* " in
  *" -m "*) ;;
  *) set -- -m "not slow and not gpu" "$@" ;;
esac
"$PYTHON" -m pytest "$@"
