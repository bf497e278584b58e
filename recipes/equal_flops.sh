#!/usr/bin/env bash
# The baselines of a rung of the ladder once more, each as validation chose it, but trained with the FLOPs of the rung's network with n-grams
# rather than its minutes, to which they are not bound: any machine will do.
#   TEXT=input.txt ./recipes/equal_flops.sh
# Reads RESULTS/MINUTES-sweep.json, writes RESULTS/MINUTES-equal_flops.json.
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
MINUTES=${MINUTES:-15} RESULTS=${RESULTS:-results/shakespeare} THREADS=${THREADS:-2} LENGTH=${LENGTH:-128} VOCAB_SIZE=${VOCAB_SIZE:-512}
WORK=${WORK:-checkpoints/equal_flops/$(basename "$RESULTS")}
export OMP_NUM_THREADS=$THREADS
if [ ! -e "$WORK/data/stats.json" ]; then
  "$PYTHON" build_pretrain_data.py --input "${TEXT:?the text file or folder of that ladder}" --vocab_size "$VOCAB_SIZE" --min_tokens "$LENGTH" \
    --max_tokens "$LENGTH" --val_fraction 0.05 --test_fraction 0.05 --output_dir "$WORK/data"
fi
# a line for each baseline: its name, then its arguments
"$PYTHON" - "$RESULTS/$MINUTES-sweep.json" >"$WORK/runs.txt" <<'EOF'
import json, sys
rows = {row["baseline"]: row for row in json.load(open(sys.argv[1])) if row["chosen"]}
budget = rows["network with n-grams"]["training_flops"]
intermediate = {128: 384, 192: 512, 256: 704}
for name, module in (("autoregressive", "autoregressive"), ("masked diffusion", "masked")):
    row = rows[name]
    width, layers = map(int, row["size"].split("×"))
    steps = round(budget / row["training_flops"] * row["steps"])
    print(module, "--hidden_size", width, "--num_hidden_layers", layers, "--intermediate_size", intermediate[width],
          "--optimizer", row["optimizer"], "--lr", row["lr"], "--dropout", row["dropout"], "--max_steps", steps)
EOF
while read -r name arguments; do
  run=$WORK/$MINUTES/$name-1
  # shellcheck disable=SC2086 # numbers and names without spaces
  [ -e "$run/report.json" ] || "$PYTHON" -m "baselines.$name" --data_path "$WORK/data" --output_dir "$run" --max_length "$LENGTH" $arguments </dev/null
done <"$WORK/runs.txt"
"$PYTHON" -m recipes.sweep "$WORK/$MINUTES" "$RESULTS/$MINUTES-equal_flops.json"
