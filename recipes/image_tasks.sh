#!/usr/bin/env bash
# JSON to be restored or a needle to be found, by a reader trained from random weights on the color code, on a learned convolution and on
# plain text, on clean, light and heavy pages. RATIO tokens to a visual token (1 to 21), documents of LENGTHS tokens.
#   ./recipes/image_tasks.sh                                     # JSON of 128 tokens
# Needles in English and Chinese hay, in plain text: after lists of codes, which teach to look things up; then in longer documents
# (START: a trained reader's folder); then in images, after random tokens and lists of codes in images:
#   export TASK=needle LANGUAGE="en zh" VOCAB_SIZE=1008 RATIO=1 AUGMENTATIONS=clean SAMPLES=50
#   NAME=tiny_needle_en_zh_short LENGTHS="128 256" CODECS=text TEXT_SHARE=1 BATCH=32 PAIRS=16000 TIME=8m ./recipes/image_tasks.sh
#   START=checkpoints/image_tasks/tiny_needle_en_zh_short/final NAME=tiny_needle_en_zh_1 LENGTHS="128 256 512 1024" CODECS=text TEXT_SHARE=1 PAIRS=6000 LR=3.0e-3 ./recipes/image_tasks.sh
#   START=checkpoints/image_tasks/tiny_needle_en_zh_1/final NAME=tiny_needle_en_zh_1_codebook LENGTHS="128 256 512" CODECS="codebook text" PAIRS=6000 LR=4.0e-3 SEE_TIME=12m TIME=20m ./recipes/image_tasks.sh
#   START=checkpoints/image_tasks/tiny_needle_en_zh_1_codebook/final NAME=tiny_needle_en_zh_1_codebook_1024 LENGTHS="128 256 512 1024" CODECS="codebook text" PAIRS=1600 BATCH=8 LR=2.0e-3 TIME=14m ./recipes/image_tasks.sh
#   LENGTHS=1024 MODEL=small LR=1.0e-3 TIME=30m ./recipes/image_tasks.sh      # on a GPU; not yet measured
# Writes results/image_context/tasks/<model>_<task>_<language>_<ratio>.json, and of needles the figure.
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-image.txt
source kit/environment.sh
source recipes/trained.sh
source recipes/image_module.sh
TASK=${TASK:-json} LENGTHS=${LENGTHS:-128} LANGUAGE=${LANGUAGE:-en} RATIO=${RATIO:-10} TIME=${TIME:-15m} MODEL=${MODEL:-tiny}
DEVICE=${DEVICE:-auto} SAMPLES=${SAMPLES:-100} PAIRS=${PAIRS:-20000} BATCH=${BATCH:-16} LR=${LR:-5.0e-3}
VOCAB_SIZE=${VOCAB_SIZE:-504} BITS=$("$PYTHON" -c "print(($VOCAB_SIZE + 7).bit_length())") # of a token, special ones included
CODECS=${CODECS:-codebook conv text} # what the reader learns
TEXT_SHARE=${TEXT_SHARE:-0.25} # of the pairs, in plain text
AUGMENTATIONS=${AUGMENTATIONS:-clean light heavy}
THETA=${THETA:-$([ "$TASK" = needle ] && echo 10000 || echo 100)} # rotary base
CODES_TIMES=${CODES_TIMES:-9m 4m} CODES_LENGTH=${CODES_LENGTH:-64} # lists of codes alone, then in hay, before needles
SEE_TIME=${SEE_TIME:-} # of START's reader: random tokens and lists of codes in images, before needles in images
NAME=${NAME:-${MODEL}_${TASK}_${LANGUAGE// /_}_$RATIO}
RUN=${RUN:-checkpoints/image_tasks/$NAME} RESULTS=results/image_context/tasks
mkdir -p "$RESULTS"
start=${START:-null}

# config RUN TIME LENGTHS TASKS: documents of these lengths and tasks, a reader trained for TIME from the weights in $start on
config() {
  cat <<EOF
output_dir: $1
model: {name: $MODEL, vocab_size: $VOCAB_SIZE, row_step: $RATIO, rope_theta: $THETA, start: $start}
data:
  tasks: [${4// /, }]
  lengths: [${3// /, }]
  languages: [${LANGUAGE// /, }]
  samples: $SAMPLES
  codecs:
EOF
  for codec in $CODECS; do
    case $codec in
      codebook) echo "    codebook: {codec: codebook, options: {payload: tokens, tokenizer: model, $(code_modules "$RATIO" "$BITS"), symbols_per_block: $RATIO, frame: none, columns: 1, max_side: 200}}" ;;
      conv) echo "    conv: {codec: conv, train: 0.5, options: {ratio: $RATIO}}" ;;
      text) echo "    text: {codec: text, train: $TEXT_SHARE}" ;;
      *) echo "no codec $codec here" >&2 && exit 2 ;;
    esac
  done
  cat <<EOF
  augmentations: [${AUGMENTATIONS// /, }]
generation: {num_samples_per_codec: $PAIRS}
training: {time_budget: $2, optimizer: muon, batch_size: $BATCH, gradient_accumulation_steps: 1, learning_rate: $LR}
evaluation: {batch_size: 16}
EOF
}

train() {
  mkdir -p "$1"
  config "$@" >"$1/config.yaml"
  [ -e "$1/train_data/records.jsonl" ] || "$PYTHON" -m image_context.generate_train_data --config "$1/config.yaml" --output_dir "$1"
  trained "$1" "$PYTHON" -m image_context.train_lora --device "$DEVICE" --config "$1/config.yaml"
}

if [ -n "$SEE_TIME" ]; then
  train "$RUN/see" "$SEE_TIME" "$CODES_LENGTH" "random codes"
  start=$RUN/see/final
elif [ "$TASK" = needle ] && [ "$start" = null ]; then
  read -r -a times <<<"$CODES_TIMES"
  train "$RUN/codes" "${times[0]}" "$CODES_LENGTH" codes
  start=$RUN/codes/final
  train "$RUN/codes_in_hay" "${times[1]}" "${LENGTHS%% *}" codes
  start=$RUN/codes_in_hay/final
fi
train "$RUN" "$TIME" "$LENGTHS" "$TASK$([ "$TASK" != needle ] || echo " codes")"
config "$RUN" "$TIME" "$LENGTHS" "$TASK" >"$RUN/asked.yaml"
"$PYTHON" -m image_context.run_exp --device "$DEVICE" --config "$RUN/asked.yaml" --output_dir "$RUN" --lora_path "$RUN/final"
"$PYTHON" -m image_context.plot_results --input "$RUN/results/results.jsonl" --output "$RUN/plots"
cp "$RUN/plots/summary.json" "$RESULTS/$NAME.json"
for file in config env; do cp "$RUN/results/$file.json" "$RESULTS/$NAME.$file.json"; done
if [ "$TASK" = needle ]; then cp "$RUN/plots/needle.png" "$RESULTS/$NAME.png"; fi
echo "wrote $RESULTS/$NAME.json"
