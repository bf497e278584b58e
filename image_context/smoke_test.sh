#!/usr/bin/env bash
# Data -> train `tiny` -> experiment -> plots, ten to twenty minutes of a CPU core. OUTPUT_DIR and CONFIG may be set.
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-image.txt
source kit/environment.sh
CONFIG=${CONFIG:-image_context/configs/smoke_test.yaml} OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/image_context_smoke}
run() { "$PYTHON" -m "image_context.$1" "${@:2}"; }
if [ ! -f "$OUTPUT_DIR/train_data/records.jsonl" ]; then run generate_train_data --config "$CONFIG" --output_dir "$OUTPUT_DIR"; fi
if [ ! -d "$OUTPUT_DIR/final" ]; then
  RESUME=(); if [ -f "$OUTPUT_DIR/last.pth" ]; then RESUME=(--resume auto); fi
  run train_lora --config "$CONFIG" --output_dir "$OUTPUT_DIR" ${RESUME[@]+"${RESUME[@]}"}
fi
run run_exp --config "$CONFIG" --output_dir "$OUTPUT_DIR" --lora_path "$OUTPUT_DIR/final"
run plot_results --input "$OUTPUT_DIR/results/results.jsonl" --output "$OUTPUT_DIR/plots"
