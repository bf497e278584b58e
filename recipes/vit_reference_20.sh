#!/usr/bin/env bash
# The reference recipe (preset `reference`), 20 epochs, three seeds; for a GPU.
exec "$(dirname "$0")/vit_row.sh" reference_20 --preset reference --epochs 20 --compile
