#!/usr/bin/env bash
# Random tokens restored against ratio: one model for each point, `tiny` trained from random weights for TIME, on documents
# of LENGTH tokens. CODECS: codebook (the color code), conv and pool (no image: a learned convolution or the mean of embeddings), render
# (a page two blocks wide, letters small enough for RATIO tokens to a block), qr (modules so), text.
#   ./recipes/image_curve.sh                                  # all points of one seed
#   RATIOS=10 SEEDS="0 1 2" CODECS=codebook ./recipes/image_curve.sh
#   RATIOS=20 CODECS="codebook conv" TIME=14m PAIRS=40000 ./recipes/image_curve.sh      # learned later than fewer tokens
#   RATIOS=1 CODECS="render qr" TIME=30m PAIRS=40000 ./recipes/image_curve.sh      # the page at 2 with TIME=18m PAIRS=30000
#   MODEL=small TIME=30m LR=1.0e-3 BATCH=32 LENGTH=512 RESULTS=results/image_context/small ./recipes/image_curve.sh      # on a GPU; not yet measured
# Adds its points to results/image_context/curve.json and draws curve.png.
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-image.txt
source kit/environment.sh
source recipes/trained.sh
source recipes/image_module.sh
RATIOS=${RATIOS:-1 2 3 5 8 10 16 20} SEEDS=${SEEDS:-0} CODECS=${CODECS:-codebook conv pool} LENGTH=${LENGTH:-40}
TIME=${TIME:-4m} MODEL=${MODEL:-tiny} BATCH=${BATCH:-16} PAIRS=${PAIRS:-20000} SAMPLES=${SAMPLES:-64} OPTIMIZER=${OPTIMIZER:-muon} LR=${LR:-5.0e-3} DEVICE=${DEVICE:-auto} WORK=${WORK:-checkpoints/image_curve}
RESULTS=${RESULTS:-results/image_context}
for seed in $SEEDS; do
  for ratio in $RATIOS; do
    for codec in $CODECS; do
      run=$WORK/$codec-$ratio-$seed
      mkdir -p "$run"
      row_step=$ratio
      case $codec in
        codebook) options="{payload: tokens, tokenizer: model, $(code_modules "$ratio"), symbols_per_block: $ratio, frame: none, columns: 1, max_side: 200}" ;;
        render) row_step=$((2 * ratio)) options="{page_width: 56, margin: 0, line_height: 1, font_size: $("$PYTHON" -c "print(round((480 / $ratio) ** 0.5))")}" ;;
        qr) options="{version: 6, level: L, quiet: 0, module: $(largest_qr_module "$ratio" "$LENGTH")}" ;;
        text) options="{}" ;;
        *) options="{ratio: $ratio}" ;;
      esac
      cat >"$run/config.yaml" <<YAML
seed: $seed
output_dir: $run
model: {name: $MODEL, vocab_size: 504, row_step: $row_step}
data:
  tasks: [random]
  lengths: [$LENGTH]
  samples: $SAMPLES
  codecs: {$codec: {codec: $codec, options: $options}}
generation: {num_samples_per_codec: $PAIRS}
training: {time_budget: $TIME, optimizer: $OPTIMIZER, batch_size: $BATCH, gradient_accumulation_steps: 1, learning_rate: $LR}
evaluation: {batch_size: 16}
YAML
      [ -e "$run/train_data/records.jsonl" ] || "$PYTHON" -m image_context.generate_train_data --config "$run/config.yaml" --output_dir "$run"
      trained "$run" "$PYTHON" -m image_context.train_lora --device "$DEVICE" --config "$run/config.yaml"
      "$PYTHON" -m image_context.run_exp --device "$DEVICE" --config "$run/config.yaml" --output_dir "$run" --lora_path "$run/final"
      "$PYTHON" -m image_context.plot_results --input "$run/results/results.jsonl" --output "$run/plots"
      "$PYTHON" -m recipes.image_curve --run "$run" --ratio "$ratio" --results "$RESULTS"
    done
  done
done
