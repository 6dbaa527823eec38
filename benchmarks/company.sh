#!/usr/bin/env bash
# How fast the three trainings run alone and beside one busy process, by how OpenMP's threads wait.
#
#     bash benchmarks/company.sh out/demo-avatars
#
# Reads a folder that scripts/demo.py has left. Prints a table in Markdown: images or tokens a second, the median of
# REPEATS runs [3]; the settings take turns, so that a machine that slows down slows all of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run=$1 recipe=configs/demo-64 python=${PYTHON:-.venv/bin/python} repeats=${REPEATS:-3}
latest=models_checkpoint/latest.pt pruned=models_checkpoint/pruned_codebook.pt
scratch=$(mktemp -d)
busy=
trap '[ -z "$busy" ] || kill "$busy" 2> /dev/null; rm -rf "$scratch"' EXIT

settings=("GOMP_SPINCOUNT=300000" "GOMP_SPINCOUNT=10000" "OMP_WAIT_POLICY=PASSIVE" "OMP_NUM_THREADS=1")
common=(--device cpu --seed 0 --log-step 15 --checkpoint-step 100000)
maps=(--dataset-path "$run/feature_maps/dataset.json" --decoder-path "$run/autoencoder/$latest")
declare -A training=(
    [autoencoder]="train_autoencoder.py --max-step 30 --batch-size 8 --dataset-path $run/data/dataset.json --val-fraction 0.001 --config-path $recipe/autoencoder.json"
    [codebook_1]="train_codebook.py --max-step 30 --batch-size 64 ${maps[*]} --val-fraction 0.001 --config-path $recipe/codebook_1.json"
    [transformer_2]="train_quantized_transformer.py --max-step 30 --batch-size 8 ${maps[*]} --val-fraction 0.001 --test-num-sample 1
        --lr-codebook-path $run/codebook_1/$pruned --hr-codebook-path $run/codebook_2/$pruned --config-path $recipe/transformer_2.json"
)

# rate NAME SETTING: items a second in the second log line of a training.
rate() {
    local out=$scratch/out
    rm -rf "$out"
    # shellcheck disable=SC2086
    # A busy process must not change the number of threads here: the settings are compared, not the choice.
    env OMP_NUM_THREADS="$(nproc)" "$2" "$python" ${training[$1]} "${common[@]}" --out-dir "$out" > /dev/null 2>&1
    "$python" -c 'import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
print([value for row in rows for key, value in row.items() if key in ("images_per_second", "tokens_per_second")][1])' \
        "$out/metrics.jsonl"
}

for ((repeat = 0; repeat < repeats; repeat++)); do
    for company in alone busy; do
        if [ $company = busy ]; then python3 -c 'while True: pass' & busy=$!; fi
        for setting in "${settings[@]}"; do
            for name in autoencoder codebook_1 transformer_2; do
                echo "$setting $company $name $(rate $name "$setting")" | tee -a "$scratch/rates" >&2
            done
        done
        if [ -n "$busy" ]; then kill "$busy"; wait "$busy" 2> /dev/null || true; busy=; fi
    done
done

"$python" - "$scratch/rates" <<'PY'
import statistics
import sys

rates = {}
for line in open(sys.argv[1]):
    setting, company, name, value = line.split()
    rates.setdefault((setting, name, company), []).append(float(value))
names = list(dict.fromkeys(name for _, name, _ in rates))
print("| |", " | ".join(f"{name}, alone | in company" for name in names), "|")
print("|---" * (1 + 2 * len(names)) + "|")
for setting in dict.fromkeys(key[0] for key in rates):
    cells = [f"{statistics.median(rates[setting, name, company]):,.0f}" for name in names for company in ("alone", "busy")]
    print(f"| {setting} |", " | ".join(cells), "|")
PY
