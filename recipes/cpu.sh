#!/usr/bin/env bash
# ./train.sh with its CPU defaults: the network beside n-grams once for each seed, and the network alone (not yet measured). Writes
# results/cpu; what lies there was made with EVAL_SAMPLES=128.
#   SEEDS="0 1 2" ./recipes/cpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
SEEDS=${SEEDS:-0 1 2} WORK=${WORK:-checkpoints/cpu}
export NUM_GPUS=0 EVAL_SAMPLES=${EVAL_SAMPLES:-256} DATA_DIR=$WORK/data
mkdir -p "$WORK" results/cpu
runs=()
for seed in $SEEDS; do
  started=$(date +%s)
  SEED=$seed OUTPUT_DIR=$WORK/seed$seed ./train.sh
  echo "{\"seconds\": $(($(date +%s) - started))}" >"$WORK/seed$seed/seconds.json"
  runs+=("$WORK/seed$seed/report")
done
NGRAM=0 OUTPUT_DIR=$WORK/network ./train.sh
"$PYTHON" -m recipes.recovery_table --hybrid "${runs[@]}" --network "$WORK/network/report" --output results/cpu/recovery.json
first=$WORK/seed${SEEDS%% *}
cp "$first/report/report.json" "$first/report/recovery.png" "$first/report/pixels.png" results/cpu/
cp "$first/samples/generate_000_strip.png" results/cpu/strip.png
cp "$first/samples/generate.json" "$first/seconds.json" results/cpu/
