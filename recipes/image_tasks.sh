#!/usr/bin/env bash
# JSON to be restored or a needle to be found, by a reader trained from random weights on the color code, clean and augmented.
# RATIO tokens to a visual token (1 to 21), LENGTH tokens to a document.
#   TASK=json LENGTH=128 ./recipes/image_tasks.sh                 TASK=needle LENGTH=256 ./recipes/image_tasks.sh
#   TASK=json LENGTH=1024 MODEL=small LR=1.0e-3 ./recipes/image_tasks.sh      # on a GPU; not yet measured
# Writes results/image_context/tasks/<model>_<task>_<length>_<ratio>.json.
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-image.txt
source kit/environment.sh
source recipes/image_module.sh
RATIO=${RATIO:-3} TASK=${TASK:-json} LENGTH=${LENGTH:-128} TIME=${TIME:-30m} MODEL=${MODEL:-tiny} DEVICE=${DEVICE:-auto}
SAMPLES=${SAMPLES:-100} PAIRS=${PAIRS:-20000} BATCH=${BATCH:-16} LR=${LR:-5.0e-3}
NAME=${MODEL}_${TASK}_${LENGTH}_${RATIO}
RUN=${RUN:-checkpoints/image_tasks/$NAME} RESULTS=results/image_context/tasks
mkdir -p "$RUN" "$RESULTS"
cat >"$RUN/config.yaml" <<EOF
output_dir: $RUN
model: {name: $MODEL, vocab_size: 504, row_step: $RATIO}
data:
  tasks: [$TASK]
  lengths: [$LENGTH]
  samples: $SAMPLES
  codecs:
    codebook: {codec: codebook, options: {payload: tokens, tokenizer: model, colors: 8, module: $(largest_module "$RATIO"), symbols_per_block: $RATIO, frame: none, columns: 1, max_side: 200}}
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
echo "wrote $RESULTS/$NAME.json"
