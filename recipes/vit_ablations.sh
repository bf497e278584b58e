#!/usr/bin/env bash
# What the optimizer and each augmentation are worth to the preset `cifar` on a CPU, TIME each: results/vit_cifar10/$NAME.json.
#   CIFAR=path/to/cifar10 ./recipes/vit_ablations.sh
#   NAME=optimizers TIME=9m RUNS="muon-1e-3 muon-2e-3 muon-4e-3 adamw-2.5e-4 adamw-5e-4 adamw-1e-3" ./recipes/vit_ablations.sh
# A run is the preset with one thing changed; of an optimizer's rates validation chooses.
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
source recipes/trained.sh
TIME=${TIME:-10m} SEEDS=${SEEDS:-0} NAME=${NAME:-ablations} CIFAR=${CIFAR:-} DEVICE=${DEVICE:-cpu}
WORK=${WORK:-checkpoints/vit_$NAME}
RUNS=${RUNS:-muon adamw-1e-3 adamw-3e-3 no_crops trivial_augment erase mixup cutmix no_smoothing}
for seed in $SEEDS; do
  for run in $RUNS; do
    case $run in
      muon) change=() ;;
      muon-* | adamw-*) change=(--optimizer "${run%%-*}" --lr "${run#*-}") ;;
      no_crops) change=(--crop_padding 0) ;;
      trivial_augment) change=(--trivial_augment) ;;
      erase) change=(--erase_prob 0.25) ;;
      mixup) change=(--mixup 0.2) ;;
      cutmix) change=(--cutmix 1) ;;
      no_smoothing) change=(--label_smoothing 0) ;;
      *) echo "no run $run" >&2 && exit 2 ;;
    esac
    folder=$WORK/$run/$seed
    trained "$folder" "$PYTHON" -m vit_cifar10.train --preset cifar --time_budget "$TIME" --device "$DEVICE" ${CIFAR:+--data_path "$CIFAR"} \
      --seed "$seed" ${change[@]+"${change[@]}"}
  done
done
"$PYTHON" -m recipes.vit_ablations "$WORK" --name "$NAME"
