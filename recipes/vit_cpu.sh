#!/usr/bin/env bash
# The preset `cifar` for ten minutes on a CPU with a C++ compiler, three seeds; without crops, which cost more than they give in three epochs.
exec "$(dirname "$0")/vit_row.sh" cpu --preset cifar --time_budget 10m --crop_padding 0 --device cpu --compile
