#!/usr/bin/env bash
# Your own novels, by the README's command: a folder of text files as UTF-8, once for each seed, and with BOTH=1 also as GB18030, whose
# report must be the same. Writes results/novels.json.
#   NOVELS=path/to/txt_files SEEDS="0 1 2" ./recipes/novels.sh
set -euo pipefail
NOVELS=$(cd "${NOVELS:?name a folder of UTF-8 .txt files}" && pwd)
cd "$(dirname "$0")/.."
source kit/environment.sh
SEEDS=${SEEDS:-0} WORK=${WORK:-checkpoints/novels} BOTH=${BOTH:-}
export NUM_GPUS=0 EVAL_SAMPLES=${EVAL_SAMPLES:-256} VOCAB_SIZE=2048 EPOCHS=${EPOCHS:-1}
mkdir -p "$WORK"
runs=()
for seed in $SEEDS; do
  SEED=$seed DATA_PATH=$NOVELS DATA_DIR=$WORK/data OUTPUT_DIR=$WORK/seed$seed ./train.sh
  runs+=("$WORK/seed$seed/report")
done
"$PYTHON" -m recipes.recovery_table --hybrid "${runs[@]}" --output results/novels.json
if [ -n "$BOTH" ]; then
  mkdir -p "$WORK/gb18030_text"
  "$PYTHON" - "$NOVELS" "$WORK/gb18030_text" <<'PY'
import pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.txt")):
    (pathlib.Path(sys.argv[2]) / path.name).write_bytes(path.read_text(encoding="utf-8").encode("gb18030"))
PY
  first=${SEEDS%% *}
  SEED=$first DATA_PATH=$WORK/gb18030_text OUTPUT_DIR=$WORK/gb18030 ./train.sh
  "$PYTHON" - "$WORK/seed$first" "$WORK/gb18030" <<'PY'
import json, pathlib, sys
one, other = (json.loads((pathlib.Path(p) / "report" / "report.json").read_text()) for p in sys.argv[1:])
same = one["recovery"] == other["recovery"]
print("UTF-8 and GB18030:", "the same numbers" if same else "DIFFERENT numbers")
sys.exit(not same)
PY
fi
