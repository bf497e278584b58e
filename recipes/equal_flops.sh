#!/usr/bin/env bash
# Tiny Shakespeare with equal parameters and training FLOPs instead of equal minutes, so that the machine does not matter: the baselines of the
# ladder's 15 minutes as validation chose them, and JiT-N/1 with n-grams, trained on gaps as that of 60 minutes is. The FLOPs are those of
# the network with n-grams that validation chose at 15 minutes; they and those of a step are read from RESULTS/15-sweep.json.
#   TEXT=input.txt ./recipes/equal_flops.sh
# Writes RESULTS/equal_flops.json and equal_flops-sweep.json; with SEED=1 equal_flops-seed1.json.
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-mauve.txt
source kit/environment.sh
RESULTS=${RESULTS:-results/shakespeare} THREADS=${THREADS:-2} PASSES=${PASSES:-32} TEXTS=${TEXTS:-200} # texts of val and test are some 230
WORK=${WORK:-checkpoints/equal_flops} SEED=${SEED:-0}
export OMP_NUM_THREADS=$THREADS
if [ ! -e "$WORK/data/stats.json" ]; then
  "$PYTHON" build_pretrain_data.py --input "${TEXT:?tiny Shakespeare}" --vocab_size 512 --min_tokens 128 --max_tokens 128 \
    --val_fraction 0.05 --test_fraction 0.05 --output_dir "$WORK/data"
fi
# the FLOPs, then a line for each system: the folder of its run, its program and arguments
"$PYTHON" - "$RESULTS/15-sweep.json" >"$WORK/runs.txt" <<'EOF'
import json, sys
rows = json.load(open(sys.argv[1]))
budget = next(row["training_flops"] for row in rows if row["baseline"] == "network with n-grams" and row["chosen"])
print(f"{budget / 1e12:.1f}")
def steps(row):
    return round(budget / row["training_flops"] * row["steps"])
for module, name in (("autoregressive", "autoregressive"), ("masked", "masked diffusion")):
    row = next(row for row in rows if row["baseline"] == name and row["chosen"])
    width, layers = row["size"].split("×")
    print(f"{module}-1 -m baselines.{module} --max_length 128 --hidden_size {width} --num_hidden_layers {layers} --intermediate_size 512",
          f"--optimizer {row['optimizer']} --lr {row['lr']} --dropout {row['dropout']} --max_steps {steps(row)}")
row = next(row for row in rows if row["baseline"] == "network with n-grams" and row["size"] == "JiT-N/1")
print("ngram3-1 train.py --model JiT-N/1 --token_dim 128 --rope order --time_sampling logit_normal --t_mean 1.2 --t_std 0.9 --self_cond_prob 0",
      "--img_size 16 --batch_size 16 --ngram 3 --ngram_start 0.5 --infill_blank 0.5 --val_samples 64",
      f"--optimizer {row['optimizer']} --lr {row['lr']} --max_steps {steps(row)}")
EOF
{
  read -r budget
  runs=$WORK/${budget}e12-$SEED
  while read -r -a line; do
    run=$runs/${line[0]}
    data=$WORK/data ended=report.json
    if [ "${line[1]}" = train.py ]; then
      data=$WORK/data/train ended=finished
      if [ -e "$run/last.pth" ]; then line+=(--resume auto); fi
    fi
    [ -e "$run/$ended" ] || "$PYTHON" "${line[@]:1}" --data_path "$data" --output_dir "$run" --seed "$SEED" </dev/null
    [ -e "$run/$ended" ] # not where a signal stopped it
  done
} <"$WORK/runs.txt"
name=equal_flops
if [ "$SEED" != 0 ]; then name+=-seed$SEED; fi
"$PYTHON" -m recipes.sweep "$runs" "$RESULTS/$name-sweep.json"
"$PYTHON" compare.py --checkpoint "network with n-grams=$runs/ngram3-1/best_model.pth" --autoregressive "$runs/autoregressive-1" \
  --masked "$runs/masked-1" --data_path "$WORK/data" --passes $PASSES --num_texts "$TEXTS" --mauve --guidance 1 --seed "$SEED" --output_dir "$runs/comparison"
cp "$runs/comparison/compare.json" "$RESULTS/$name.json"
