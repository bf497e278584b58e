#!/usr/bin/env bash
# The seeds' objective against ours, and what each ingredient is worth: same size, data, steps and seed in every row.
# Writes results/objectives.json. About 15 minutes on two CPU cores.   STEPS=200 SEED=0 ./recipes/objectives.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
STEPS=${STEPS:-200} SEED=${SEED:-0} WORK=${WORK:-checkpoints/objectives}
MODEL=${MODEL:-JiT-Ti/4} IMG_SIZE=${IMG_SIZE:-16} LR=${LR:-2.5e-3}

if [ ! -e "$WORK/data/stats.json" ]; then
  "$PYTHON" build_pretrain_data.py --output_dir "$WORK/data" --vocab_size 512 --min_tokens 64 --max_tokens $((IMG_SIZE * IMG_SIZE))
fi

row() { # name, then the arguments that differ
  local name=$1 run="$WORK/$1"
  shift
  if [ ! -e "$run/report/report.json" ]; then
    "$PYTHON" train.py --data_path "$WORK/data" --model "$MODEL" --img_size "$IMG_SIZE" --lr "$LR" --max_steps "$STEPS" \
      --val_interval "$STEPS" --seed "$SEED" --output_dir "$run" "$@"
    "$PYTHON" evaluate.py --checkpoint "$run/best_model.pth" --data_path "$WORK/data/val" --output_dir "$run/report" \
      --num_samples 192 --num_inference_steps 4
  fi
}

seeds=(--objective pixel --scan raster --palette digits)
row pixel_uniform_t "${seeds[@]}" --time_sampling uniform
row pixel_jit_t "${seeds[@]}" --time_sampling logit_normal --t_mean -0.8 --t_std 0.8
row pixel_fitted_t --objective pixel --palette context
row token_digits --palette digits
row token --palette context
"$PYTHON" -m recipes.objectives_table --runs "$WORK" --output results/objectives.json
