#!/usr/bin/env bash
# Tiny Shakespeare in so many minutes of training each: the network with n-grams and alone, an autoregressive transformer, masked
# diffusion; one table. Writes results/shakespeare/MINUTES.json and .png for each rung of the ladder.
#   TEXT=input.txt ./recipes/shakespeare.sh                           # TEXT: a file, a folder, or a Hugging Face dataset
#   TEXT=input.txt MINUTES="3 15 60" THREADS=2 ./recipes/shakespeare.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
TEXT=${TEXT:?a text file, a folder of them, or the name of a Hugging Face dataset}
MINUTES=${MINUTES:-3 15 60} VOCAB_SIZE=${VOCAB_SIZE:-512} LENGTH=${LENGTH:-128} SEED=${SEED:-0} THREADS=${THREADS:-2}
WORK=${WORK:-checkpoints/shakespeare} RESULTS=${RESULTS:-results/shakespeare}
LRS=${LRS:-1e-3 3e-3 6e-3} DROPOUTS=${DROPOUTS:-0 0.1} # of the baselines, chosen on val
PASSES=${PASSES:-4 8 16 32 64}
export OMP_NUM_THREADS=$THREADS
mkdir -p "$RESULTS"
if [ ! -e "$WORK/data/stats.json" ]; then
  if [ -e "$TEXT" ]; then from=(--input "$TEXT"); else from=(--dataset_name "$TEXT"); fi
  "$PYTHON" build_pretrain_data.py "${from[@]}" --vocab_size "$VOCAB_SIZE" --min_tokens "$LENGTH" --max_tokens "$LENGTH" \
    --val_fraction 0.05 --test_fraction 0.05 --seed "$SEED" --output_dir "$WORK/data"
fi

# baseline NAME MINUTES FOLDER SIZE... : trains unless it has
baseline() {
  name=$1 minutes=$2 folder=$3
  shift 3
  [ -e "$folder/report.json" ] || "$PYTHON" -m "baselines.$name" --data_path "$WORK/data" --output_dir "$folder" \
    --time_budget "${minutes}m" --max_length "$LENGTH" --seed "$SEED" "$@"
}

for minutes in $MINUTES; do
  # the longer the run, the larger the networks
  if [ "$minutes" -lt 10 ]; then
    size=(--hidden_size 128 --num_hidden_layers 4 --intermediate_size 384) ours=(--token_dim 64)
  elif [ "$minutes" -lt 40 ]; then
    size=(--hidden_size 192 --num_hidden_layers 6 --intermediate_size 512) ours=(--token_dim 96)
  else
    size=(--hidden_size 256 --num_hidden_layers 6 --intermediate_size 704) ours=(--token_dim 128)
  fi
  for name in autoregressive masked; do
    for lr in $LRS; do
      for dropout in $DROPOUTS; do
        baseline "$name" "$minutes" "$WORK/$minutes/$name-$lr-$dropout" "${size[@]}" --lr "$lr" --dropout "$dropout"
      done
    done
  done
  for ngram in 0 3; do
    run=$WORK/$minutes/ngram$ngram
    [ -e "$run/finished" ] || "$PYTHON" train.py --data_path "$WORK/data/train" --output_dir "$run" --time_budget "${minutes}m" --ngram "$ngram" \
      --model JiT-Ti/4 --img_size 16 "${ours[@]}" --ngram_start 0.5 --batch_size 16 --lr 4e-3 --seed "$SEED" --val_samples 64
    touch "$run/finished"
  done
  best() { # the run of a baseline with the lowest validation loss
    "$PYTHON" - "$WORK/$minutes" "$1" <<'EOF'
import json, sys
from pathlib import Path
def loss(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return min(row["val_loss"] for row in rows if "val_loss" in row)
print(min(Path(sys.argv[1]).glob(f"{sys.argv[2]}-*"), key=loss))
EOF
  }
  "$PYTHON" compare.py --checkpoint "network with n-grams=$WORK/$minutes/ngram3/best_model.pth" "network alone=$WORK/$minutes/ngram0/best_model.pth" \
    --autoregressive "$(best autoregressive)" --masked "$(best masked)" --data_path "$WORK/data" --passes $PASSES \
    --output_dir "$WORK/$minutes/comparison" --seed "$SEED"
  cp "$WORK/$minutes/comparison/compare.json" "$RESULTS/$minutes.json"
  cp "$WORK/$minutes/comparison/frontier.png" "$RESULTS/$minutes.png"
done
