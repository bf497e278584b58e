#!/usr/bin/env bash
# From a fresh clone to a trained model, a report and pictures: builds the data if there is none, trains, evaluates.
# Every setting is an environment variable, e.g.  DATA_PATH=novels/ OUTPUT_DIR=checkpoints/novels ./train.sh
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")"
source kit/environment.sh

NUM_GPUS=${NUM_GPUS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')}
if [ "$NUM_GPUS" -gt 0 ]; then # JiT-B/4 on 64x64 pictures
  MODEL=${MODEL:-JiT-B/4} IMG_SIZE=${IMG_SIZE:-64} VOCAB_SIZE=${VOCAB_SIZE:-4096} MIN_TOKENS=${MIN_TOKENS:-256}
  BATCH_SIZE=${BATCH_SIZE:-32} EPOCHS=${EPOCHS:-100} LR=${LR:-4e-4} NUM_WORKERS=${NUM_WORKERS:-4} NGRAM=${NGRAM:-0} # n-grams beside the network are not measured on GPUs
else # a tiny preset that learns within minutes on two CPU cores
  MODEL=${MODEL:-JiT-Ti/4} IMG_SIZE=${IMG_SIZE:-16} VOCAB_SIZE=${VOCAB_SIZE:-512} MIN_TOKENS=${MIN_TOKENS:-64}
  [ -n "${EPOCHS:-}" ] || MAX_STEPS=${MAX_STEPS-400} # a few minutes; with EPOCHS set, all of them
  BATCH_SIZE=${BATCH_SIZE:-32} EPOCHS=${EPOCHS:-2} LR=${LR:-2e-3} NUM_WORKERS=${NUM_WORKERS:-0} NGRAM=${NGRAM:-3} EVAL_SAMPLES=${EVAL_SAMPLES:-64}
fi
MAX_TOKENS=${MAX_TOKENS:-$((IMG_SIZE * IMG_SIZE))}
WARMUP_EPOCHS=${WARMUP_EPOCHS:-0}
MAX_STEPS=${MAX_STEPS:-}
OBJECTIVE=${OBJECTIVE:-token} PALETTE=${PALETTE:-context} SCAN=${SCAN:-block}
TOKENIZER_PATH=${TOKENIZER_PATH:-}
DATA_PATH=${DATA_PATH:-} # raw text, or a folder that build_pretrain_data.py wrote; empty = the text every Python carries
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/jit}
DATA_DIR=${DATA_DIR:-$OUTPUT_DIR/data}
SEED=${SEED:-0} EVAL_SAMPLES=${EVAL_SAMPLES:-256}
WANDB=${WANDB:-} DEVICE=${DEVICE:-auto}
TOKENS_PER_STEP=${TOKENS_PER_STEP:-} # on all devices together; empty = BATCH_SIZE texts on each

# paths are the caller's, whatever folder the script lies in
for name in DATA_PATH OUTPUT_DIR DATA_DIR TOKENIZER_PATH; do
  value=${!name}
  if [ "$caller" != "$PWD" ] && [ -n "$value" ] && [ "${value#/}" = "$value" ] && { [ "$name" != TOKENIZER_PATH ] || [ -e "$caller/$value" ]; }; then
    printf -v "$name" '%s' "$caller/$value"
  fi
done

for name in MODEL IMG_SIZE NGRAM OBJECTIVE PALETTE SCAN DATA_PATH DATA_DIR TOKENIZER_PATH VOCAB_SIZE MIN_TOKENS MAX_TOKENS \
  BATCH_SIZE TOKENS_PER_STEP EPOCHS MAX_STEPS LR WARMUP_EPOCHS OUTPUT_DIR NUM_GPUS NUM_WORKERS EVAL_SAMPLES SEED DEVICE WANDB; do
  printf '%-16s %s\n' "$name" "${!name:--}"
done

if [ -n "$DATA_PATH" ] && [ "$(basename "$DATA_PATH")" = train ] && [ -e "$(dirname "$DATA_PATH")/stats.json" ]; then
  DATA_PATH=$(dirname "$DATA_PATH")
fi
if [ -n "$DATA_PATH" ] && [ -e "$DATA_PATH/stats.json" ]; then
  DATA_DIR=$DATA_PATH
elif [ -e "$DATA_DIR/stats.json" ]; then
  "$PYTHON" - "$DATA_DIR" "$DATA_PATH" <<'EOF'
import json, sys
built = json.load(open(f"{sys.argv[1]}/stats.json"))["settings"]["input"] or [""]
if built != [sys.argv[2]]:
    print(f"error: {sys.argv[1]} was built from {built[0] or 'the built-in text'}: choose another OUTPUT_DIR", file=sys.stderr)
    sys.exit(2)
EOF
else
  build=(--output_dir "$DATA_DIR" --vocab_size "$VOCAB_SIZE" --min_tokens "$MIN_TOKENS" --max_tokens "$MAX_TOKENS" --seed "$SEED")
  if [ -n "$DATA_PATH" ]; then build+=(--input "$DATA_PATH"); fi
  if [ -n "$TOKENIZER_PATH" ]; then build+=(--tokenizer_path "$TOKENIZER_PATH"); fi
  "$PYTHON" build_pretrain_data.py "${build[@]}"
fi

if [ "$NUM_GPUS" -eq 0 ] && [ "$DEVICE" = auto ]; then DEVICE=cpu; fi
launch=("$PYTHON")
if [ "$NUM_GPUS" -gt 1 ]; then launch=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$NUM_GPUS"); fi
train=(--data_path "$DATA_DIR/train" --model "$MODEL" --img_size "$IMG_SIZE" --objective "$OBJECTIVE" --palette "$PALETTE"
  --scan "$SCAN" --ngram "$NGRAM" --batch_size "$BATCH_SIZE" --epochs "$EPOCHS" --lr "$LR" --warmup_epochs "$WARMUP_EPOCHS"
  --num_workers "$NUM_WORKERS" --output_dir "$OUTPUT_DIR" --seed "$SEED" --device "$DEVICE")
if [ -n "${TOKENS_PER_STEP:-}" ]; then train+=(--tokens_per_step "$TOKENS_PER_STEP"); fi
if [ -n "$MAX_STEPS" ]; then train+=(--max_steps "$MAX_STEPS"); fi
if [ -n "$WANDB" ]; then train+=(--wandb "$WANDB"); fi
if [ -e "$OUTPUT_DIR/last.pth" ]; then # a run that was stopped goes on; a finished one goes straight to the report
  echo "continuing the run in $OUTPUT_DIR"
  train+=(--resume auto)
fi
stopped= status=0
"${launch[@]}" train.py "${train[@]}" & # behind, since bash hears no signal while it waits for what runs in front
child=$!
trap 'stopped=1; kill -TERM "$child" 2>/dev/null || true' INT TERM # train.py saves and leaves; nothing is evaluated then
wait "$child" || status=$?
while [ -n "$stopped" ] && kill -0 "$child" 2>/dev/null; do wait "$child" || status=$?; done
if [ -n "$stopped" ]; then exit 130; fi
if [ "$status" -ne 0 ]; then exit "$status"; fi
trap - INT TERM

"$PYTHON" evaluate.py --checkpoint "$OUTPUT_DIR/best_model.pth" --data_path "$DATA_DIR" --output_dir "$OUTPUT_DIR/report" --num_samples "$EVAL_SAMPLES" --device "$DEVICE"
"$PYTHON" inference.py --checkpoint "$OUTPUT_DIR/best_model.pth" --mode generate --strip --gif --overwrite --output_dir "$OUTPUT_DIR/samples" --device "$DEVICE" >"$OUTPUT_DIR/generate.log"

echo
echo "model     $OUTPUT_DIR/best_model.pth"
echo "report    $OUTPUT_DIR/report/report.html"
echo "numbers   $OUTPUT_DIR/report/report.json"
echo "pictures  $OUTPUT_DIR/report/recovery.png"
echo "          $OUTPUT_DIR/report/pixels.png"
echo "samples   $OUTPUT_DIR/samples/"
