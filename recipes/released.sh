#!/usr/bin/env bash
# The checkpoints that come with the repository: trained on a CPU in under two hours each, rounded to 7 bits, and measured as they are
# shipped. The network learns alone, then beside bigrams, then beside trigrams, which cost four times as much a step.
#   NAME=english TEXT=books/ ./recipes/released.sh
#   NAME=chinese TEXT=novels/ VOCAB_SIZE=2048 ./recipes/released.sh
# Writes checkpoints/NAME.safetensors, results/released/NAME.json and .png, and results/robust for english.
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
source recipes/trained.sh
NAME=${NAME:?english or chinese} TEXT=${TEXT:?a folder of texts}
VOCAB_SIZE=${VOCAB_SIZE:-1024} BUDGET=${BUDGET:-75m} JOIN=${JOIN:-25m} THREADS=${THREADS:-1} SEED=${SEED:-0}
WORK=${WORK:-checkpoints/released/$NAME}
export OMP_NUM_THREADS=$THREADS
if [ ! -e "$WORK/data/stats.json" ]; then
  "$PYTHON" build_pretrain_data.py --input "$TEXT" --vocab_size "$VOCAB_SIZE" --min_tokens 64 --max_tokens 256 --seed "$SEED" --output_dir "$WORK/data"
fi

common=("$PYTHON" train.py --data_path "$WORK/data/train" --model JiT-Ti/4 --img_size 16 --batch_size 16 --val_samples 64 --seed "$SEED")
trained "$WORK/run" "${common[@]}" --ngram 2 --ngram_start 0.85 --lr 2e-3 --time_budget "$BUDGET" --val_interval 500
trained "$WORK/joined" "${common[@]}" --init_from "$WORK/run/best_model.pth" --ngram 3 --ngram_start 0 --lr 5e-4 --time_budget "$JOIN" --val_interval 200

"$PYTHON" release.py --checkpoint "$WORK/joined/best_model.pth" --output_file "checkpoints/$NAME.safetensors" --overwrite
mkdir -p results/released
"$PYTHON" evaluate.py --checkpoint "checkpoints/$NAME.safetensors" --data_path "$WORK/data" --output_dir "$WORK/report" --num_samples 48 \
  --likelihood_levels 8 --passes 2
cp "$WORK/report/report.json" "results/released/$NAME.json"
cp "$WORK/report/recovery.png" "results/released/$NAME.png"
if [ "$NAME" = english ]; then
  "$PYTHON" -m recipes.robust_pictures --checkpoint "checkpoints/$NAME.safetensors" --data_path "$WORK/data" --num_samples 8 --passes 1
fi
