#!/usr/bin/env bash
# Your own novels: the same folder of text files once as UTF-8 and once as GB18030. Writes results/novels.json.
#   NOVELS=path/to/txt_files STEPS=1000 ./recipes/novels.sh
set -euo pipefail
NOVELS=$(realpath "${NOVELS:?name a folder of UTF-8 .txt files}")
cd "$(dirname "$0")/.."
source kit/environment.sh
STEPS=${STEPS:-1000} WORK=${WORK:-checkpoints/novels}
mkdir -p "$WORK/gb18030_text"
"$PYTHON" - "$NOVELS" "$WORK/gb18030_text" <<'EOF'
import pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.txt")):
    (pathlib.Path(sys.argv[2]) / path.name).write_bytes(path.read_text(encoding="utf-8").encode("gb18030"))
EOF
NUM_GPUS=0 MAX_STEPS=$STEPS VOCAB_SIZE=2048 DATA_PATH=$NOVELS OUTPUT_DIR=$WORK/utf8 ./train.sh
NUM_GPUS=0 MAX_STEPS=$STEPS VOCAB_SIZE=2048 DATA_PATH=$WORK/gb18030_text OUTPUT_DIR=$WORK/gb18030 ./train.sh
"$PYTHON" - "$WORK" <<'EOF'
import json, pathlib, sys
sys.path.insert(0, ".")
from kit.runlog import write_json
work = pathlib.Path(sys.argv[1])
result = {}
for name in ("utf8", "gb18030"):
    report = json.loads((work / name / "report" / "report.json").read_text())
    stats = json.loads((work / name / "data" / "stats.json").read_text())
    result[name] = {"report": report, "splits": stats["splits"], "tokens_per_byte": stats["tokens_per_byte"]}
write_json("results/novels.json", result)
EOF
