#!/usr/bin/env bash
# The preset `cifar`, 20 epochs, three seeds; for a GPU.
exec "$(dirname "$0")/vit_row.sh" cifar_20 --preset cifar --epochs 20 --compile
