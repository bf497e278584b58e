# Sourced by train.sh and test.sh: leaves in $PYTHON an interpreter that has what requirements.txt names.
# The active environment is used if it has every package, else .venv is created here and filled.

has_requirements() {
  "$1" - <<'EOF' 2>/dev/null
import importlib.metadata, sys
names = [line.split("==")[0].strip() for line in open("requirements.txt") if line.strip()]
for name in names:
    importlib.metadata.version(name)
sys.exit(sys.version_info < (3, 11))
EOF
}

find_python() {
  for candidate in "${PYTHON:-python3}" .venv/bin/python; do
    if command -v "$candidate" >/dev/null && has_requirements "$candidate"; then
      PYTHON=$candidate
      return
    fi
  done
  echo "creating .venv and installing requirements.txt (a few minutes)"
  "${PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  PYTHON=.venv/bin/python
  has_requirements "$PYTHON" || { echo "error: the installation into .venv is incomplete: remove .venv and run again" >&2; exit 2; }
}

find_python
