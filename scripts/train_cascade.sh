#!/usr/bin/env bash
# Chain all steps of a recipe: bash scripts/train_cascade.sh RECIPE DATASET OUT [--device DEVICE]
#
# RECIPE is a folder of configs/, DATASET a dataset.json of images, OUT the folder to write to. The recipe decides
# how many stages the cascade has: transformer_0.json, transformer_1.json, … A step that has run to its end with the same
# command, config and images is skipped; one that was interrupted is resumed.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/train_cascade.sh RECIPE DATASET OUT [--device DEVICE]" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
recipe=$root/configs/$1 dataset=$2 out=$3
common=("${@:4}")
if [ ! -f "$recipe/recipe.sh" ]; then
    echo "error: $recipe/recipe.sh: no such recipe; configs/ holds: $(ls "$root/configs" | tr '\n' ' ')" >&2
    exit 2
fi
source "$recipe/recipe.sh"
stages=0
while [ -f "$recipe/transformer_$stages.json" ]; do
    settings=TRANSFORMER_$stages
    if [ -z "${!settings:-}" ]; then echo "error: $recipe/recipe.sh: does not set $settings; add it" >&2; exit 2; fi
    stages=$((stages + 1))
done
if [ $stages = 0 ]; then echo "error: $recipe: has no transformer_0.json, so no stage; add it" >&2; exit 2; fi
if [ ! -f "$dataset" ]; then
    echo "error: $dataset: no such data set; make it with scripts.make_dataset" >&2
    exit 2
fi
if [ -n "${PYTHON:-}" ]; then python=$PYTHON
elif [ -n "${VIRTUAL_ENV:-}" ] || { [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; }; then
    python=python  # the environment that is active; conda's base is active without being asked for
elif [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python
else source "$root/scripts/environment.sh"; python=$(find_python); fi

# step NAME SCRIPT [ARGUMENT...]: run a step unless it has ended before with the same arguments, config and images,
# and so have all steps before it: each key holds a hash of the one before.
key=
step() {
    local name=$1 script=$2 done_file=$out/.done/$1 argument
    shift 2
    key="$script $* after $(printf %s "$key" | cksum)"
    for argument in "$@"; do
        case $argument in "$dataset" | "$recipe"/*) key="$key $(cksum < "$argument")" ;; esac
    done
    if [ "$(cat "$done_file" 2>/dev/null)" = "$key" ]; then
        echo "== $name: done"
        return
    fi
    echo "== $name"
    rm -f "$done_file"
    SECONDS=0
    "$python" "$root/$script" "$@" ${common[@]+"${common[@]}"}
    echo "$name took $SECONDS s"
    mkdir -p "$out/.done"
    echo "$key" > "$done_file"
}

latest=models_checkpoint/latest.pt
pruned=models_checkpoint/pruned_codebook.pt
decoder=$out/autoencoder/$latest
maps=$out/feature_maps/dataset.json
names=(codebook_cond)
for ((i = 0; i < stages; i++)); do names+=("codebook_$i"); done

mkdir -p "$out"
cp "$recipe/generate.json" "$out/generate.json"
step autoencoder train_autoencoder.py --resume $AUTOENCODER \
    --dataset-path "$dataset" --config-path "$recipe/autoencoder.json" --out-dir "$out/autoencoder"
step feature_maps generate_fmap_dataset.py $FEATURE_MAPS \
    --dataset-path "$dataset" --model-path "$decoder" --out-dir "$out/feature_maps"
for name in "${names[@]}"; do
    step "$name" train_codebook.py --resume $CODEBOOK \
        --dataset-path "$maps" --decoder-path "$decoder" --config-path "$recipe/$name.json" --out-dir "$out/$name"
    step "prune_$name" prune_codebook.py $PRUNE \
        --dataset-path "$maps" --codebook-path "$out/$name/$latest" --decoder-path "$decoder" --out-dir "$out/$name"
done
before=(--train-base-model)
for ((i = 0; i < stages; i++)); do
    settings=TRANSFORMER_$i
    step "transformer_$i" train_quantized_transformer.py --resume ${!settings} "${before[@]}" \
        --dataset-path "$maps" --decoder-path "$decoder" \
        --lr-codebook-path "$out/${names[i]}/$pruned" --hr-codebook-path "$out/${names[i + 1]}/$pruned" \
        --config-path "$recipe/transformer_$i.json" --out-dir "$out/transformer_$i"
    before=(--previous-path "$out/transformer_$i/models_checkpoint/best.pt")
done
key="$key $(cksum < "$out/generate.json")"
step generate generate_images.py $GENERATE \
    --decoder-path "$decoder" --config-path "$out/generate.json" --out-dir "$out/generated"
echo "pictures: $out/generated/images (what each step learned: $out/*/images)"
