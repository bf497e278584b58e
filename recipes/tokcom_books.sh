#!/usr/bin/env bash
# TokCom as a language model: 1, 2 and 4 tokens in a vector, 16 numbers for each, the network alone and at 4 with trigrams inside; beside an
# autoregressive transformer. The same minutes of one thread each, the same texts. Writes results/tokcom/books.json.
#   TEXT=books/ ./recipes/tokcom_books.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
TIME=${TIME:-15m} WORK=${WORK:-checkpoints/tokcom_books} SEED=${SEED:-0} LENGTH=128 LRS=${LRS:-3e-3 6e-3}
DATA=${DATA:-$WORK/data} # built from TEXT unless it is there
export OMP_NUM_THREADS=${THREADS:-1}
if [ ! -e "$DATA/stats.json" ]; then
  "$PYTHON" build_pretrain_data.py --input "${TEXT:?a text file or a folder of them}" --vocab_size "${VOCAB_SIZE:-1024}" --min_tokens $LENGTH \
    --max_tokens $LENGTH --val_fraction 0.05 --test_fraction 0.05 --seed "$SEED" --output_dir "$DATA"
fi
run() { # NAME ARGUMENTS...
  local name=$1
  shift
  [ -e "$WORK/$name/report/report.json" ] && return
  [ -e "$WORK/$name/finished" ] || "$PYTHON" -m tokcom.train --preset tiny --data_path "$DATA" --max_length $LENGTH --time_budget "$TIME" --seed "$SEED" \
    --output_dir "$WORK/$name" --device cpu "$@"
  touch "$WORK/$name/finished"
  "$PYTHON" -m tokcom.evaluate --checkpoint "$WORK/$name/best_diffusion.pt" --data_path "$DATA" --output_dir "$WORK/$name/report" --seed "$SEED" --device cpu --without_ngrams
}
for lr in $LRS; do
  [ -e "$WORK/autoregressive-$lr/report.json" ] || "$PYTHON" -m baselines.autoregressive --data_path "$DATA" --max_length $LENGTH --hidden_size 192 \
    --num_hidden_layers 6 --intermediate_size 512 --lr "$lr" --time_budget "$TIME" --seed "$SEED" --output_dir "$WORK/autoregressive-$lr"
done
for chunk in 4 2 1; do
  run "chunk$chunk" --chunk_size $chunk --latent_dim $((16 * chunk)) --ngram 0
done
run trigrams --chunk_size 4 --latent_dim 64 --ngram 3
"$PYTHON" -m recipes.tokcom_books --work "$WORK" --output results/tokcom/books.json
