#!/usr/bin/env bash
# One text, so many minutes of training each: the network with n-grams and alone, an autoregressive transformer, masked diffusion; one
# table and one figure for each rung, RESULTS/MINUTES.json and .png (of further seeds MINUTES-seedN.json), all rates and dropouts in
# MINUTES-sweep.json. Training at all rates and dropouts of the three rungs adds up to more than a day, with RATES=muon-6e-3 DROPOUTS=0
# to six hours. recipes/shakespeare.sh is the first ladder; further ones, all three with
#   export MINUTES=5 RATES=muon-6e-3 DROPOUTS=0 PASSES=32 PARTS="likelihood generation" THREADS=1
#   TEXT=books/ VOCAB_SIZE=1024 RESULTS=results/books ./recipes/ladder.sh
#   TEXT=novels/ VOCAB_SIZE=2048 RESULTS=results/novels_ladder ./recipes/ladder.sh
#   TEXT=Salesforce/wikitext CONFIG=wikitext-2-raw-v1 VOCAB_SIZE=1024 RESULTS=results/wikitext2 ./recipes/ladder.sh
# On a GPU the same with larger networks, such as
#   TEXT=books/ VOCAB_SIZE=4096 LENGTH=1024 MINUTES=60 NETWORK="--model JiT-B/4 --img_size 64 --batch_size 32" LR=3e-4 RATES="adamw-3e-4 adamw-1e-3 muon-1e-3" \
#   SIZE="--hidden_size 768 --num_hidden_layers 12 --intermediate_size 2048" RESULTS=results/books_gpu ./recipes/ladder.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
source recipes/trained.sh
TEXT=${TEXT:?a text file, a folder of them, or the name of a Hugging Face dataset} CONFIG=${CONFIG:-}
MINUTES=${MINUTES:-3 15 60} VOCAB_SIZE=${VOCAB_SIZE:-512} LENGTH=${LENGTH:-128} SEEDS=${SEEDS:-0} THREADS=${THREADS:-2}
RESULTS=${RESULTS:?where to write}
WORK=${WORK:-checkpoints/ladder/$(basename "$RESULTS")}
NETWORK=${NETWORK:-} LR=${LR:-} # arguments of a network, and its rates, one or several, instead of the rung's; validation chooses
SIZE=${SIZE:-} RATES=${RATES:-adamw-1e-3 adamw-3e-3 muon-3e-3 muon-6e-3 muon-1.2e-2} DROPOUTS=${DROPOUTS:-0 0.1} # of the baselines, chosen on val
PASSES=${PASSES:-4 8 16 32 64} PARTS=${PARTS:-likelihood gaps generation} # gaps and generation take long with large vocabularies
export OMP_NUM_THREADS=$THREADS
mkdir -p "$RESULTS"
if [ ! -e "$WORK/data/stats.json" ]; then
  if [ -e "$TEXT" ]; then from=(--input "$TEXT"); else from=(--dataset_name "$TEXT" ${CONFIG:+--dataset_config "$CONFIG"}); fi
  "$PYTHON" build_pretrain_data.py "${from[@]}" --vocab_size "$VOCAB_SIZE" --min_tokens "$LENGTH" --max_tokens "$LENGTH" \
    --val_fraction 0.05 --test_fraction 0.05 --output_dir "$WORK/data"
fi

# baseline NAME MINUTES FOLDER SIZE... : trains unless it has
baseline() {
  name=$1 minutes=$2 folder=$3
  shift 3
  [ -e "$folder/report.json" ] || "$PYTHON" -m "baselines.$name" --data_path "$WORK/data" --output_dir "$folder" \
    --time_budget "${minutes}m" --max_length "$LENGTH" --seed "$seed" "$@"
}

# a rate and the arguments: of a token a patch, where there is time for it
each_token="6e-3 --model JiT-N/1 --token_dim 128 --rope order --optimizer muon --time_sampling logit_normal --t_mean 1.2 --t_std 0.9 --self_cond_prob 0"
for minutes in $MINUTES; do
  # the longer the run, the larger the networks, where nothing else is said
  beside_ngrams=()
  if [ "$minutes" -lt 10 ]; then
    size=(--hidden_size 128 --num_hidden_layers 4 --intermediate_size 384) networks=("4e-3 --model JiT-Ti/4 --token_dim 64")
  elif [ "$minutes" -lt 40 ]; then
    size=(--hidden_size 192 --num_hidden_layers 6 --intermediate_size 512) networks=("$each_token" "2e-3 --model JiT-Ti/4 --token_dim 96")
  else
    size=(--hidden_size 256 --num_hidden_layers 6 --intermediate_size 704) networks=("$each_token") beside_ngrams=(--infill_blank 0.5)
  fi
  if [ -n "$SIZE" ]; then read -r -a size <<<"$SIZE"; fi
  if [ -n "$NETWORK$LR" ]; then networks=("${networks[0]}"); fi
  if [ -n "$NETWORK" ]; then networks=("${networks[0]%% *} $NETWORK") beside_ngrams=(); fi
  for seed in $SEEDS; do
    rung=$WORK/$minutes
    if [ "$seed" != 0 ]; then rung=$rung-seed$seed; fi
    for name in autoregressive masked; do
      for rate in $RATES; do
        for dropout in $DROPOUTS; do
          baseline "$name" "$minutes" "$rung/$name-$rate-$dropout" "${size[@]}" --optimizer "${rate%%-*}" --lr "${rate#*-}" --dropout "$dropout"
        done
      done
    done
    for network in "${networks[@]}"; do
      read -r rate arguments <<<"$network"
      for lr in ${LR:-$rate}; do
        for ngram in 0 3; do
          run=$rung/ngram$ngram-$lr
          more=()
          if [ "$ngram" != 0 ]; then more=(${beside_ngrams[@]+"${beside_ngrams[@]}"}); fi
          trained "$run" "$PYTHON" train.py --data_path "$WORK/data/train" --time_budget "${minutes}m" --ngram "$ngram" \
            --img_size 16 --batch_size 16 --ngram_start 0.5 --val_samples 64 $arguments --lr "$lr" --seed "$seed" ${more[@]+"${more[@]}"}
        done
      done
    done
    "$PYTHON" -m recipes.sweep "$rung" "$RESULTS/${rung##*/}-sweep.json"
    best() { # the run of a kind with the lowest validation loss
      "$PYTHON" - "$rung" "$1" <<'EOF'
import json, sys
from pathlib import Path
def loss(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return min(row["val_loss"] for row in rows if "val_loss" in row)
runs = Path(sys.argv[1]).glob(f"{sys.argv[2]}-*")
print(min((run for run in runs if (run / "report.json").is_file() or (run / "finished").is_file()), key=loss))
EOF
    }
    "$PYTHON" compare.py --checkpoint "network with n-grams=$(best ngram3)/best_model.pth" "network alone=$(best ngram0)/best_model.pth" \
      --autoregressive "$(best autoregressive)" --masked "$(best masked)" --data_path "$WORK/data" --passes $PASSES --parts $PARTS --guidance 1 \
      --output_dir "$rung/comparison" --seed "$seed"
    cp "$rung/comparison/compare.json" "$RESULTS/${rung##*/}.json"
    if [ -e "$rung/comparison/frontier.png" ]; then cp "$rung/comparison/frontier.png" "$RESULTS/${rung##*/}.png"; fi
  done
done
