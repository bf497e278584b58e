#!/usr/bin/env bash
# TokCom's preset `tiny` on one core of a CPU: train, evaluate, all modes. Writes results/tokcom/cpu/. BOOKS: texts to
# encode and decode whole, with spaces between them, for results/tokcom/round_trip.json.
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
source recipes/trained.sh
RUN=${RUN:-checkpoints/tokcom_cpu} TIME=${TIME:-22m} RESULTS=results/tokcom/cpu
export OMP_NUM_THREADS=${THREADS:-1}
trained "$RUN" "$PYTHON" -m tokcom.train --preset tiny --time_budget "$TIME" --device cpu
"$PYTHON" -m tokcom.evaluate --checkpoint "$RUN/best_diffusion.pt" --data_path "$RUN/data" --output_dir "$RUN/report" --num_prompts 128 --device cpu
if [ -n "${BOOKS:-}" ]; then
  read -r -a books <<<"$BOOKS"
  "$PYTHON" -m recipes.tokcom_round_trip --checkpoint "$RUN/best_diffusion.pt" --texts "${books[@]}" --device cpu
fi
mkdir -p "$RESULTS"
cp "$RUN/report/"*.png "$RUN/report/report.json" "$RUN/config.json" "$RESULTS/"
TEXT="Return the list of names that the module defines, sorted. If the argument is omitted, the current scope is used."
modes() {
  ask() { echo "## $*"; "$PYTHON" -m tokcom.inference --checkpoint "$RUN/best_diffusion.pt" --device cpu "$@"; echo; }
  ask --mode generate --num_chunks 48
  ask --mode reconstruct --input_text "$TEXT"
  ask --mode denoise_reconstruct --input_text "$TEXT" --noise_level 0.5
  ask --mode encode --input_text "$TEXT" --output_file "$RUN/latents.pt"
  ask --mode decode --latents "$RUN/latents.pt"
  ask --mode conditional --prompt "Return the list of names that " --num_generate_chunks 24
}
modes >"$RESULTS/modes.txt"
