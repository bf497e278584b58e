trap 'exit 130' INT TERM # programs save and leave at a signal; their script goes no further

# Sourced by the scripts: leaves in $PYTHON an interpreter that has what $REQUIREMENTS names (default: requirements.txt).
# The active environment is used if it has every package, else .venv is created here and filled.
REQUIREMENTS=${REQUIREMENTS:-requirements.txt}

has_requirements() {
  "$1" - "$REQUIREMENTS" <<'PY' 2>/dev/null
import importlib.metadata, sys
def check(path):
    for line in open(path):
        if line.startswith("-r "):
            check(line[3:].strip())
        elif line.strip():
            importlib.metadata.version(line.split("==")[0].strip())
check(sys.argv[1])
sys.exit(sys.version_info < (3, 11))
PY
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" .venv/bin/python; do
    if command -v "$candidate" >/dev/null && has_requirements "$candidate"; then
      PYTHON=$candidate
      return
    fi
  done
  echo "creating .venv and installing $REQUIREMENTS (a few minutes)"
  [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$REQUIREMENTS"
  PYTHON=.venv/bin/python
  has_requirements "$PYTHON" || { echo "error: the installation into .venv is incomplete: remove .venv and run again" >&2; exit 2; }
}

find_python
