#!/usr/bin/env bash
# What training changes in the texts: self-conditioning and the size of patches, the network alone, equal minutes for each, on the data of
# a ladder (recipes/shakespeare.sh). Writes results/generation_training.json.
#   LADDER=checkpoints/ladder/shakespeare ./recipes/generation_training.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
source recipes/trained.sh
LADDER=${LADDER:-checkpoints/ladder/shakespeare} JUDGE=${JUDGE:-$LADDER/60/autoregressive-3e-3-0.1}
MINUTES=${MINUTES:-5} SEED=${SEED:-0} WORK=${WORK:-checkpoints/generation_training} LR=${LR:-4e-3}
export OMP_NUM_THREADS=${THREADS:-1}
mkdir -p results
checkpoints=()
variant() { # NAME ARGUMENTS...
  name=$1 run=$WORK/${1// /_}
  shift
  trained "$run" "$PYTHON" train.py --data_path "$LADDER/data/train" --time_budget "${MINUTES}m" --ngram 0 --img_size 16 \
    --token_dim 64 --batch_size 16 --lr "$LR" --seed "$SEED" --val_samples 64 "$@"
  checkpoints+=("$name=$run/best_model.pth")
}
variant "patch 4, self-conditioning 0.25" --model JiT-Ti/4
variant "self-conditioning 0" --model JiT-Ti/4 --self_cond_prob 0
variant "self-conditioning 0.5" --model JiT-Ti/4 --self_cond_prob 0.5
variant "patch 2" --model JiT-Ti/2
variant "patch 1" --model JiT-Ti/1
"$PYTHON" compare.py --checkpoint "${checkpoints[@]}" --autoregressive "$JUDGE" --data_path "$LADDER/data" --passes ${PASSES:-16 64} \
  --parts likelihood generation --output_dir "$WORK/comparison" --seed "$SEED"
cp "$WORK/comparison/compare.json" results/generation_training.json
