#!/usr/bin/env bash
# ./train.sh with its CPU defaults from an empty folder; keeps the report and figures under results/cpu.
set -euo pipefail
cd "$(dirname "$0")/.."
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/cpu}
mkdir -p "$OUTPUT_DIR"
started=$(date +%s)
NUM_GPUS=0 OUTPUT_DIR=$OUTPUT_DIR ./train.sh
echo "{\"seconds\": $(($(date +%s) - started))}" >"$OUTPUT_DIR/seconds.json"
mkdir -p results/cpu
cp "$OUTPUT_DIR/report/report.json" "$OUTPUT_DIR/report/recovery.png" "$OUTPUT_DIR/report/pixels.png" results/cpu/
cp "$OUTPUT_DIR/samples/generate_000_strip.png" results/cpu/strip.png
cp "$OUTPUT_DIR/samples/generate.json" "$OUTPUT_DIR/seconds.json" results/cpu/
