#!/usr/bin/env bash
# The seed document's recipe, 20 epochs, three seeds; for a GPU.
exec "$(dirname "$0")/vit_row.sh" seed_20 --preset seed --epochs 20 --compile
