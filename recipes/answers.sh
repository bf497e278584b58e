#!/usr/bin/env bash
# Answers to prompts, right or wrong word for word: sorted letters, entries of a dictionary (and sums with TASKS=addition), each a run of so many minutes,
# and an autoregressive transformer in as many. Writes results/answers/TASK.json.
#   MINUTES=6 THREADS=1 ./recipes/answers.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
source recipes/trained.sh
MINUTES=${MINUTES:-6} THREADS=${THREADS:-1} SEED=${SEED:-0} TASKS=${TASKS:-sorting lookup} WORK=${WORK:-checkpoints/answers}
export OMP_NUM_THREADS=$THREADS
mkdir -p "$WORK" results/answers
for task in $TASKS; do
  pairs=$WORK/$task.jsonl
  [ -e "$pairs" ] || "$PYTHON" -m recipes.make_pairs --tasks "$task" --output_file "$pairs" --seed "$SEED"
  trained "$WORK/$task" "$PYTHON" train.py --data_path "$pairs" --pairs --vocab_size 257 --model JiT-N/1 --img_size 7 --token_depth 1 \
    --ngram 0 --batch_size 64 --lr 2e-3 --self_cond_prob 0 --time_budget "${MINUTES}m" --seed "$SEED"
  [ -e "$WORK/$task-ar/report.json" ] || "$PYTHON" -m baselines.autoregressive --data_path "$pairs" --pairs --vocab_size 257 --max_length 49 --batch_size 64 \
    --lr 3e-3 --time_budget "${MINUTES}m" --output_dir "$WORK/$task-ar" --seed "$SEED"
  "$PYTHON" answers.py --checkpoint "$WORK/$task/best_model.pth" --data_path "$pairs" --autoregressive "$WORK/$task-ar" --output_dir "$WORK/$task-answers"
  cp "$WORK/$task-answers/answers.json" "results/answers/$task.json"
done
