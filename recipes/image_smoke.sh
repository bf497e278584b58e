#!/usr/bin/env bash
# The smoke test, its plots and its summary: results/image_context/smoke/.
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-image.txt
source kit/environment.sh
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/image_context_smoke} RESULTS=results/image_context/smoke
export OUTPUT_DIR PYTHON
START=$SECONDS
./image_context/smoke_test.sh
mkdir -p "$RESULTS"
cp "$OUTPUT_DIR"/plots/*.png "$OUTPUT_DIR/plots/summary.json" "$OUTPUT_DIR/results/env.json" "$OUTPUT_DIR/config.json" "$RESULTS/"
echo "{\"seconds\": $((SECONDS - START))}" >"$RESULTS/time.json"
"$PYTHON" -m image_context.gallery --overwrite --output_dir "$OUTPUT_DIR/gallery"
cp "$OUTPUT_DIR/gallery/gallery.png" results/image_context/
