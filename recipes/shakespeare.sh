#!/usr/bin/env bash
# Tiny Shakespeare in 3, 15 and 60 minutes of a laptop's CPU each; what else can be set is in ladder.sh.
#   TEXT=input.txt ./recipes/shakespeare.sh                      # or the name of a Hugging Face dataset
set -euo pipefail
RESULTS=${RESULTS:-results/shakespeare} exec "$(dirname "$0")/ladder.sh"
