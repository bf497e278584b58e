#!/usr/bin/env bash
# One point of the curve "tokens restored against ratio": `small`, trained from random weights on random tokens, about ten minutes on
# one GPU. RATIO tokens to a visual token (1 to 21), LENGTH tokens to a document. For all points:
#   for r in 1 2 4 6 8 10 12 16 20; do RATIO=$r recipes/image_small.sh; done
# Then JSON and needles at 1k and 4k, and robustness:
#   TASK=json LENGTH=1024 recipes/image_small.sh      TASK=needle LENGTH=4096 recipes/image_small.sh
# Writes results/image_context/small/<task>_<length>_<ratio>.json. DEVICE, TIME and MODEL may be set (MODEL=tiny for a CPU).
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-image.txt
source kit/environment.sh
RATIO=${RATIO:-10} TASK=${TASK:-random} LENGTH=${LENGTH:-512} TIME=${TIME:-9m} MODEL=${MODEL:-small} DEVICE=${DEVICE:-auto}
SAMPLES=${SAMPLES:-100} PAIRS=${PAIRS:-20000} BATCH=${BATCH:-32}
RUN=${RUN:-checkpoints/image_${MODEL}_${TASK}_${LENGTH}_${RATIO}} NAME=${TASK}_${LENGTH}_${RATIO}
mkdir -p "$RUN" results/image_context/small
cat >"$RUN/config.yaml" <<EOF
output_dir: $RUN
model: {name: $MODEL, vocab_size: 504, row_step: $RATIO}
data:
  tasks: [$TASK]
  lengths: [$LENGTH]
  samples: $SAMPLES
  codecs:
    codebook: {codec: codebook, options: {payload: tokens, tokenizer: model, colors: 8, module: 2, symbols_per_block: $RATIO, frame: none, columns: 1, max_side: 200}}
  augmentations: [clean, light, heavy]
generation: {num_samples_per_codec: $PAIRS}
training: {time_budget: $TIME, batch_size: $BATCH, gradient_accumulation_steps: 1, learning_rate: 6.0e-4}
evaluation: {batch_size: 16}
EOF
for step in "generate_train_data" "train_lora --device $DEVICE" "run_exp --device $DEVICE --lora_path $RUN/final"; do
  # shellcheck disable=SC2086  # the steps carry their flags
  "$PYTHON" -m image_context.$step --config "$RUN/config.yaml" --output_dir "$RUN"
done
"$PYTHON" -m image_context.plot_results --input "$RUN/results/results.jsonl" --output "$RUN/plots"
cp "$RUN/plots/summary.json" "results/image_context/small/$NAME.json"
echo "wrote results/image_context/small/$NAME.json"
