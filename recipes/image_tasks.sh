#!/usr/bin/env bash
# JSON to be restored or a needle to be found, by a reader trained from random weights on the color code, on a learned convolution and on
# plain text, on clean, light and heavy pages. RATIO tokens to a visual token (1 to 21), documents of LENGTHS tokens.
#   ./recipes/image_tasks.sh                                     # JSON of 128 tokens
#   TASK=needle LENGTHS="128 256 512 1024" LANGUAGE=zh ./recipes/image_tasks.sh
#   LENGTHS=1024 MODEL=small LR=1.0e-3 TIME=30m ./recipes/image_tasks.sh      # on a GPU; not yet measured
# Writes results/image_context/tasks/<model>_<task>_<language>_<ratio>.json, and of needles the figure.
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-image.txt
source kit/environment.sh
source recipes/image_module.sh
TASK=${TASK:-json} LENGTHS=${LENGTHS:-128} LANGUAGE=${LANGUAGE:-en} RATIO=${RATIO:-10} TIME=${TIME:-15m} MODEL=${MODEL:-tiny}
DEVICE=${DEVICE:-auto} SAMPLES=${SAMPLES:-100} PAIRS=${PAIRS:-20000} BATCH=${BATCH:-16} LR=${LR:-5.0e-3}
CODECS=${CODECS:-codebook conv text} # what the reader learns
NAME=${MODEL}_${TASK}_${LANGUAGE}_$RATIO
RUN=${RUN:-checkpoints/image_tasks/$NAME} RESULTS=results/image_context/tasks
mkdir -p "$RUN" "$RESULTS"
cat >"$RUN/config.yaml" <<EOF
output_dir: $RUN
model: {name: $MODEL, vocab_size: 504, row_step: $RATIO}
data:
  tasks: [$TASK]
  lengths: [${LENGTHS// /, }]
  languages: [$LANGUAGE]
  samples: $SAMPLES
  codecs:
EOF
for codec in $CODECS; do
  case $codec in
    codebook) echo "    codebook: {codec: codebook, options: {payload: tokens, tokenizer: model, colors: 8, module: $(largest_module "$RATIO"), symbols_per_block: $RATIO, frame: none, columns: 1, max_side: 200}}" ;;
    conv) echo "    conv: {codec: conv, train: 0.5, options: {ratio: $RATIO}}" ;;
    text) echo "    text: {codec: text, train: 0.25}" ;;
    *) echo "no codec $codec here" >&2 && exit 2 ;;
  esac
done >>"$RUN/config.yaml"
cat >>"$RUN/config.yaml" <<EOF
  augmentations: [clean, light, heavy]
generation: {num_samples_per_codec: $PAIRS}
training: {time_budget: $TIME, optimizer: muon, batch_size: $BATCH, gradient_accumulation_steps: 1, learning_rate: $LR}
evaluation: {batch_size: 16}
EOF
for step in "generate_train_data" "train_lora --device $DEVICE" "run_exp --device $DEVICE --lora_path $RUN/final"; do
  # shellcheck disable=SC2086  # the steps carry their flags
  "$PYTHON" -m image_context.$step --config "$RUN/config.yaml" --output_dir "$RUN"
done
"$PYTHON" -m image_context.plot_results --input "$RUN/results/results.jsonl" --output "$RUN/plots"
cp "$RUN/plots/summary.json" "$RESULTS/$NAME.json"
for file in config env; do cp "$RUN/results/$file.json" "$RESULTS/$NAME.$file.json"; done
if [ "$TASK" = needle ]; then cp "$RUN/plots/needle.png" "$RESULTS/$NAME.png"; fi
echo "wrote $RESULTS/$NAME.json"
