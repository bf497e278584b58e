#!/usr/bin/env bash
# TokCom `base` on one GPU, and an autoregressive transformer on the same tokens, with about the same FLOPs per token, trained
# for the same time. TEXT: folders and files of text (WikiText-2, books); BOOK: one to encode and decode whole. Writes
# results/tokcom/gpu/. Not yet measured. Small, on a CPU: PRESET=tiny MAX_TOKENS=256 DEVICE=cpu TIME=1m SAMPLES=8 PROMPTS=8.
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
source recipes/trained.sh
RUN=${RUN:-checkpoints/tokcom_gpu} TIME=${TIME:-60m} RESULTS=results/tokcom/gpu DEVICE=${DEVICE:-cuda} PRESET=${PRESET:-base}
MAX_TOKENS=${MAX_TOKENS:-1024} SAMPLES=${SAMPLES:-128} PROMPTS=${PROMPTS:-512}
if [ ! -f "$RUN/data/stats.json" ]; then
  # shellcheck disable=SC2086  # TEXT may name several
  "$PYTHON" build_pretrain_data.py --input ${TEXT:?name the text} --output_dir "$RUN/data" --vocab_size "${VOCAB_SIZE:-8192}" \
    --min_tokens $((MAX_TOKENS / 4)) --max_tokens "$MAX_TOKENS"
fi
trained "$RUN" "$PYTHON" -m tokcom.train --preset "$PRESET" --data_path "$RUN/data" --time_budget "$TIME" --device "$DEVICE"
"$PYTHON" -m tokcom.evaluate --checkpoint "$RUN/best_diffusion.pt" --data_path "$RUN/data" --output_dir "$RUN/report" --num_samples "$SAMPLES" --num_prompts "$PROMPTS" ${BOOK:+--book "$BOOK"} --device "$DEVICE"
# both about 90 MFLOP per token and call of the network with a vocabulary of 8192 (both reports state what torch counted)
[ -e "$RUN/autoregressive/report.json" ] || "$PYTHON" -m baselines.autoregressive --data_path "$RUN/data" --output_dir "$RUN/autoregressive" --max_length "$MAX_TOKENS" \
  --hidden_size 512 --num_hidden_layers 10 --num_attention_heads 8 --intermediate_size 1408 --batch_size 32 --lr 1e-3 \
  --num_samples "$SAMPLES" --num_prompts "$PROMPTS" --time_budget "$TIME" --device "$DEVICE"
mkdir -p "$RESULTS"
cp "$RUN/report/"*.png "$RUN/report/report.json" "$RUN/config.json" "$RESULTS/"
cp "$RUN/autoregressive/report.json" "$RESULTS/autoregressive.json"
