#!/usr/bin/env bash
# TokCom as a language model, the same minutes of one thread each, on the same texts: an autoregressive transformer; the flow on 1, 2 and 4
# tokens in a vector, 16 numbers for each, the network alone and with trigrams inside; and the vectors written one after the other by each
# head of tokcom/calm.py, in the minutes that stage one leaves. Writes results/tokcom/NAME.json. RUNS names what is trained, heads of 1 or 2
# instead of 4 tokens in a vector with that number after their name; RATES how the transformer and the heads are trained, chosen by
# validation; DRAWS from how many draws for a vector the heads learn, a row for each. STEPS instead of minutes for heads; STEPS=equal for as
# many as take the transformer's FLOPs of training, stage one not counted.
#   TEXT=books/ VOCAB_SIZE=1024 NAME=books ./recipes/tokcom_language.sh
#   TEXT=input.txt VOCAB_SIZE=257 NAME=shakespeare ./recipes/tokcom_language.sh      # bytes: tiny Shakespeare by characters
#   TEXT=input.txt VOCAB_SIZE=257 NAME=shakespeare_15 RUNS="flow_tokens flow_tokens2 flow_tokens1" RATES=muon-6e-3 DRAWS="8 2" ./recipes/tokcom_language.sh
#   the same with RUNS=posterior1 DRAWS=0.25 STEPS=equal, or RUNS="posterior2 posterior" DRAWS=1 STEPS=equal
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
source recipes/trained.sh
NAME=${NAME:?of the result} MINUTES=${MINUTES:-15} WORK=${WORK:-checkpoints/tokcom_$NAME} SEED=${SEED:-0} LENGTH=128 RATES=${RATES:-adamw-3e-3 muon-6e-3} DRAWS=${DRAWS:-8}
RUNS=${RUNS:-chunk4 energy flow tokens energy_tokens flow_tokens chunk2 chunk1 trigrams} PROMPTS=${PROMPTS:-512} STEPS=${STEPS:-}
DATA=${DATA:-$WORK/data} # built from TEXT unless it is there
export OMP_NUM_THREADS=${THREADS:-1}
if [ ! -e "$DATA/stats.json" ]; then
  "$PYTHON" build_pretrain_data.py --input "${TEXT:?a text file or a folder of them}" --vocab_size "${VOCAB_SIZE:-1024}" --min_tokens $LENGTH \
    --max_tokens $LENGTH --val_fraction 0.05 --test_fraction 0.05 --seed "$SEED" --output_dir "$DATA"
fi
SIZES=(--data_path "$DATA" --max_length $LENGTH --hidden_size 192 --num_hidden_layers 6 --intermediate_size 512 --seed "$SEED" --num_prompts "$PROMPTS")
flow() { # RUN ARGUMENTS...
  local run=$WORK/$1
  shift
  [ -e "$run/report/report.json" ] && return
  trained "$run" "$PYTHON" -m tokcom.train --preset tiny --data_path "$DATA" --max_length $LENGTH --time_budget "${MINUTES}m" --seed "$SEED" \
    --device cpu "$@"
  "$PYTHON" -m tokcom.evaluate --checkpoint "$run/best_diffusion.pt" --data_path "$DATA" --output_dir "$run/report" --seed "$SEED" --device cpu \
    --num_prompts "$PROMPTS" --without_ngrams
}
for rate in $RATES; do
  run=$WORK/autoregressive-$rate
  [ -e "$run/report.json" ] || "$PYTHON" -m baselines.autoregressive "${SIZES[@]}" --optimizer "${rate%%-*}" --lr "${rate#*-}" \
    --time_budget "${MINUTES}m" --output_dir "$run"
done
for run in $RUNS; do
  case $run in
    chunk*) flow "$run" --chunk_size "${run#chunk}" --latent_dim $((16 * ${run#chunk})) --ngram 0 ;;
    trigrams) flow trigrams --chunk_size 4 --latent_dim 64 --ngram 3 ;;
    *) # of the minutes 12 % go into stage one, or it is that of chunk$size where that has been trained before
      size=${run##*[!0-9]}
      size=${size:-4}
      kind=${run%%[0-9]*} vae=$WORK/chunk$size/best_vae.pt
      if [ ! -e "$WORK/chunk$size/finished" ]; then
        vae=$WORK/vae$size/best_vae.pt
        trained "$WORK/vae$size" "$PYTHON" -m tokcom.train --stage vae --preset tiny --data_path "$DATA" --max_length $LENGTH --vae_fraction 1 \
          --time_budget "$((MINUTES * 60 * 12 / 100))s" --seed "$SEED" --device cpu --chunk_size "$size" \
          --latent_dim $((16 * size)) --ngram 0
      fi
      head=(--head "${kind%_tokens}") duration=(--time_budget "$((MINUTES * 60 * 88 / 100))s")
      case $kind in # as large as the head's own loss
        energy_tokens) head+=(--token_loss 1) ;;
        flow_tokens) head+=(--token_loss 0.1) ;;
        posterior) head+=(--head_layers "$size") ;; # which are left what the tokens of a vector share
      esac
      for rate in $RATES; do
        for draws in $DRAWS; do
          of_head=("${SIZES[@]}" --vae_checkpoint "$vae" "${head[@]}" --draws "$draws" --output_dir "$WORK/$run-$rate-$draws")
          if [ -e "$WORK/$run-$rate-$draws/report.json" ]; then continue; fi
          steps=$STEPS
          if [ "$steps" = equal ]; then steps=$("$PYTHON" -m recipes.tokcom_steps "$WORK/autoregressive-$rate/report.json" "${of_head[@]}"); fi
          if [ -n "$steps" ]; then duration=(--max_steps "$steps"); fi
          "$PYTHON" -m tokcom.calm "${of_head[@]}" --optimizer "${rate%%-*}" --lr "${rate#*-}" "${duration[@]}"
        done
      done ;;
  esac
done
"$PYTHON" -m recipes.tokcom_language --work "$WORK" --output "results/tokcom/$NAME.json"
"$PYTHON" -m recipes.tokcom_brier --work "$WORK" --data_path "$DATA" --result "results/tokcom/$NAME.json" --num_prompts "${BRIER_PROMPTS:-4096}" --device cpu
