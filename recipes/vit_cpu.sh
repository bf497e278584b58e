#!/usr/bin/env bash
# The preset `cifar` for ten minutes on a CPU, three seeds.
exec "$(dirname "$0")/vit_row.sh" cpu --preset cifar --time_budget 10m --device cpu
