#!/usr/bin/env bash
# One row of vit_cifar10/README.md: trains with seeds 0, 1, 2 and writes results/vit_cifar10/NAME.json.
#   CIFAR=path/to/cifar10 ./recipes/vit_row.sh NAME [arguments of vit_cifar10.train]       (CIFAR empty: download)
set -euo pipefail
cd "$(dirname "$0")/.."
source kit/environment.sh
NAME=$1 SEEDS=${SEEDS:-0 1 2} WORK=${WORK:-checkpoints/vit_rows} CIFAR=${CIFAR:-}
shift
runs=()
for seed in $SEEDS; do
  run=$WORK/$NAME/$seed
  resume=()
  if [ -e "$run/last.pth" ]; then resume=(--resume auto); fi
  "$PYTHON" -m vit_cifar10.train "$@" ${CIFAR:+--data_path "$CIFAR"} --seed "$seed" --output_dir "$run" ${resume[@]+"${resume[@]}"}
  [ -e "$run/finished" ]
  runs+=("$run")
done
"$PYTHON" -m recipes.vit_row --name "$NAME" "${runs[@]}"
