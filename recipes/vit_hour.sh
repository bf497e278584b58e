#!/usr/bin/env bash
# The preset `cifar` for an hour on a CPU with a C++ compiler, one seed.
SEEDS=${SEEDS:-0} exec "$(dirname "$0")/vit_row.sh" cpu_hour --preset cifar --time_budget 60m --device cpu --compile
