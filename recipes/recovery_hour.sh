#!/usr/bin/env bash
# The built-in text for about an hour on two CPU cores: a wider network alone, then n-grams join it. Writes results/hour.
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
source recipes/trained.sh
WORK=${WORK:-checkpoints/hour} SEED=${SEED:-0} STEPS=${STEPS:-4000} JOINED_STEPS=${JOINED_STEPS:-300}
DATA=${DATA:-$WORK/data}
mkdir -p results/hour
if [ ! -e "$DATA/stats.json" ]; then
  "$PYTHON" build_pretrain_data.py --output_dir "$DATA" --vocab_size 512 --min_tokens 64 --max_tokens 256
fi
common=("$PYTHON" train.py --data_path "$DATA" --model JiT-Ti/4 --img_size 16 --token_dim 192 --token_depth 3 --seed "$SEED" --device cpu)
stage() { # folder, then what differs
  local run=$WORK/$1
  shift
  trained "$run" "${common[@]}" "$@"
  "$PYTHON" evaluate.py --checkpoint "$run/best_model.pth" --data_path "$DATA" --output_dir "$run/report" --device cpu
}
stage network --ngram 0 --lr 2e-3 --max_steps "$STEPS" --val_interval 500
stage hybrid --ngram 3 --init_from "$WORK/network/best_model.pth" --ngram_start 0 --lr 5e-4 --warmup_steps 10 \
  --max_steps "$JOINED_STEPS" --val_interval 50
"$PYTHON" -m recipes.recovery_table --hybrid "$WORK/hybrid/report" --network "$WORK/network/report" --output results/hour/recovery.json
cp "$WORK/hybrid/report/recovery.png" results/hour/
