#!/usr/bin/env bash
# Style check and tests. Arguments go to pytest, e.g.  ./test.sh tests/test_palette.py   or   ./test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")"
REQUIREMENTS=requirements-dev.txt
source kit/environment.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
case " $* " in
  *" -m "*) ;;
  *) set -- -m "not slow and not gpu and not browser and not notebook and not dry_run and not faults" "$@" ;;
esac
# two files at a time, a thread each: small tensors gain nothing from more
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
