#!/usr/bin/env bash
# Chain all steps of a recipe. A step that has run to its end with the same command, config and data, and whose results
# are there, is skipped; one that was interrupted is resumed.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/train_cascade.sh RECIPE DATASET OUT [--device DEVICE] [--overwrite] [--verify]
                                      [--nproc N] [--nnodes M --rdzv-endpoint HOST:PORT]
       bash scripts/train_cascade.sh --dry-run RECIPE DATASET [--device DEVICE]

  RECIPE       a folder of configs/, or the path of another, with a slash; its transformer_0.json,
               transformer_1.json, … decide how many stages there are
  DATASET      dataset.json of images
  OUT          the folder to write to
  --device     auto, cpu, cuda or mps [auto]
  --overwrite  replace what an earlier recipe, data set or command left in OUT; needed after a recipe was edited
  --verify     read all data once, where files were moved or copied so that their times changed
  --nproc      processes on this machine, by torchrun: one for each GPU. The batch sizes of a recipe are those of one
  --nnodes     machines, each with this command, the same files and --rdzv-endpoint, the address of one of them
  --dry-run    try every step briefly, then print the hours, disk and memory that the recipe needs on this machine
TEXT
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
is_dry= words=() processes= machines=1 endpoint=
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) is_dry=1 ;;
        --nproc | --nnodes)
            if [[ ! ${2:-} =~ ^[1-9][0-9]*$ ]]; then echo "error: $1 ${2:-}: give a number from 1 on" >&2; exit 2; fi
            if [ "$1" = --nproc ]; then processes=$2; else machines=$2; fi
            shift ;;
        --rdzv-endpoint) endpoint=${2:-}; shift ;;
        *) words+=("$1") ;;
    esac
    shift
done
if [ "$machines" != 1 ] && [ -z "$endpoint" ]; then
    echo "error: --nnodes $machines: add --rdzv-endpoint HOST:PORT, an address of one of the machines" >&2
    exit 2
fi
set -- ${words[@]+"${words[@]}"}
if [ -n "$is_dry" ] && [ -n "$processes$endpoint" ]; then
    echo "error: --dry-run: tries each step in one process; leave out --nproc" >&2
    exit 2
fi
if [ -n "$is_dry" ]; then set -- "${@:1:2}" '' "${@:3}"; fi  # there is no OUT
if [ $# -lt 3 ]; then usage >&2; exit 2; fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/signals.sh"
recipe=$root/configs/$1 dataset=$2 out=$3
if [[ $1 == */* ]]; then recipe=$1; fi
common=("${@:4}")
if [ ! -f "$recipe/recipe.sh" ]; then
    echo "error: $recipe/recipe.sh: no such recipe; configs/ holds: $(ls "$root/configs" | tr '\n' ' ')" >&2
    exit 2
fi
if [ "$1" = full-128 ]; then
    echo "full-128 keeps the sizes of an old example, as reference-128 does; for a new training use gpu-128" >&2
fi
source "$recipe/recipe.sh"
stages=0
while [ -f "$recipe/transformer_$stages.json" ]; do
    settings=TRANSFORMER_$stages
    if [ -z "${!settings:-}" ]; then echo "error: $recipe/recipe.sh: does not set $settings; add it" >&2; exit 2; fi
    stages=$((stages + 1))
done
if [ $stages = 0 ]; then echo "error: $recipe: has no transformer_0.json, so no stage; add it" >&2; exit 2; fi
case $dataset in *.tar) ;; *)  # shards are looked at by a step
    if [ ! -e "$dataset" ]; then
        echo "error: $dataset: no such data set; make it with scripts.make_dataset" >&2
        exit 2
    fi ;;
esac
if [ -n "${PYTHON:-}" ]; then python=$PYTHON
elif [ -n "${VIRTUAL_ENV:-}" ] || { [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; }; then
    python=python  # the environment that is active; conda's base is active without being asked for
elif [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python
else source "$root/scripts/environment.sh"; python=$(find_python); fi

# The project's modules come first, wherever this is run, even where there is another folder utils/.
modules=(env PYTHONSAFEPATH=1 "PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}")
if [ -n "$is_dry" ]; then
    attended "${modules[@]}" "$python" -m scripts.dry_run "$recipe" "$dataset" ${common[@]+"${common[@]}"}
    exit
fi

if [ -n "$processes" ] && [ -z "${OMP_NUM_THREADS:-}" ]; then  # torchrun would choose 1
    cores=$(getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=$((cores > processes ? cores / processes : 1))
fi
latest=models_checkpoint/latest.pt
best=models_checkpoint/best.pt
pruned=models_checkpoint/pruned_codebook.pt
decoder=$out/autoencoder/$latest
maps=$out/feature_maps/dataset.json
names=(codebook_cond)
for ((i = 0; i < stages; i++)); do names+=("codebook_$i"); done

# $(index DATASET [SIZE]): a fingerprint of its files; images must have that size. Ctrl-C ends this script after it.
index() {
    trap '' INT
    "${modules[@]}" "$python" -m utils.index "$@"
}

# note NAME TEXT: keep a text in .done, the whole or nothing.
note() {
    mkdir -p "$out/.done"
    printf '%s\n' "$2" > "$out/.done/$1.$$.new"  # other machines may write the same
    mv "$out/.done/$1.$$.new" "$out/.done/$1"
}
noted() { cat "$out/.done/$1" 2> /dev/null || true; }

# launch NAME SCRIPT [ARGUMENT...]: run a step's script, in as many processes as were asked for.
launch() {
    local name=$1 launcher=("$python") status=0
    shift
    if [ -n "$processes$endpoint" ]; then
        launcher+=(-m torch.distributed.run --nproc-per-node "${processes:-1}")
        if [ "$machines" = 1 ]; then launcher+=(--standalone)
        else launcher+=(--nnodes "$machines" --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "$name"); fi
    fi
    attended "${launcher[@]}" "$@" || status=$?
    # torchrun ends with 1, whatever ended its processes.
    if [ $status != 0 ]; then [ ${#launcher[@]} = 1 ] || status=${stop:-$status}; exit $status; fi
}

# step NAME RESULT... -- SCRIPT [ARGUMENT...]: run a step unless its results are there and it has ended before with the
# same arguments, configs and data, and so have all steps before it: each key holds a hash of the one before.
key=
step() {
    local name=$1 results=() result lost= argument
    shift
    while [ "$1" != -- ]; do results+=("$1"); shift; done
    shift
    key="$* after $(printf %s "$key" | cksum)"
    for argument in "$@"; do
        case $argument in
            "$dataset") key="$key $images" ;;
            "$maps") key="$key $features" ;;
            "$recipe"/* | "$config") key="$key $(cksum < "$argument")" ;;
        esac
    done
    if [ "$(noted "$name")" = "$key" ]; then
        for result in "${results[@]}"; do
            if [ ! -f "$result" ]; then lost=$result; fi
        done
        if [ "$name" = feature_maps ] && [ -z "$lost" ]; then
            features=$(index "$maps") || lost="$maps or a file of it"
        fi
        if [ -z "$lost" ]; then echo "== $name: done"; return; fi
        echo "$lost is gone: $name runs again"
    fi
    echo "== $name"
    rm -f "$out/.done/$name"
    SECONDS=0
    launch "$name" "$root/$1" "${@:2}" ${common[@]+"${common[@]}"}
    echo "$name took $SECONDS s"
    for result in "${results[@]}"; do
        if [ ! -f "$result" ]; then
            echo "error: $name has ended without $result; remove the folder of this step and run this again" >&2
            exit 2
        fi
    done
    if [ "$name" = feature_maps ]; then features=$(index "$maps"); fi
    note "$name" "$key"
}

images=$(index "$dataset" ${IMAGE_SIZE:+"$IMAGE_SIZE"})
features=  # the fingerprint of the feature maps, once they are there
# The config of the generation follows the recipe until a person edits it.
config=$out/generate.json
mkdir -p "$out"
if [ -f "$config" ] && ! cmp -s "$recipe/generate.json" "$config" &&
    [ "$(cksum < "$config")" != "$(noted generate.json)" ]; then
    echo "$config was edited, so it is kept; for the recipe's, remove it and run this again"
else
    if ! cmp -s "$recipe/generate.json" "$config"; then
        cp "$recipe/generate.json" "$config.$$.new"
        mv "$config.$$.new" "$config"
    fi
    sum=$(cksum < "$config")
    if [ "$(noted generate.json)" != "$sum" ]; then note generate.json "$sum"; fi
fi

step autoencoder "$decoder" -- train_autoencoder.py --resume $AUTOENCODER \
    --dataset-path "$dataset" --config-path "$recipe/autoencoder.json" --out-dir "$out/autoencoder"
step feature_maps "$maps" -- generate_fmap_dataset.py $FEATURE_MAPS \
    --dataset-path "$dataset" --model-path "$decoder" --out-dir "$out/feature_maps"
for name in "${names[@]}"; do
    step "$name" "$out/$name/$latest" -- train_codebook.py --resume $CODEBOOK \
        --dataset-path "$maps" --decoder-path "$decoder" --config-path "$recipe/$name.json" --out-dir "$out/$name"
    step "prune_$name" "$out/$name/$pruned" -- prune_codebook.py $PRUNE \
        --dataset-path "$maps" --codebook-path "$out/$name/$latest" --decoder-path "$decoder" --out-dir "$out/$name"
done
# With DECODER in its recipe a cascade decodes with a decoder that has learned from quantized feature maps.
if [ -n "${DECODER:-}" ]; then
    step decoder "$out/decoder/$latest" -- train_autoencoder.py --resume $DECODER \
        --dataset-path "$dataset" --encoder-path "$decoder" --hr-codebook-path "$out/${names[stages]}/$pruned" \
        --config-path "$recipe/autoencoder.json" --out-dir "$out/decoder"
    decoder=$out/decoder/$latest
fi
before=(--train-base-model)
for ((i = 0; i < stages; i++)); do
    settings=TRANSFORMER_$i
    step "transformer_$i" "$out/transformer_$i/$best" "$out/transformer_$i/$latest" -- \
        train_quantized_transformer.py --resume ${!settings} "${before[@]}" \
        --dataset-path "$maps" --decoder-path "$decoder" \
        --lr-codebook-path "$out/${names[i]}/$pruned" --hr-codebook-path "$out/${names[i + 1]}/$pruned" \
        --config-path "$recipe/transformer_$i.json" --out-dir "$out/transformer_$i"
    before=(--previous-path "$out/transformer_$i/$best")
done
step generate "$out/generated/tokens.npz" "$out/generated/images/recon_model_Cond.png" -- generate_images.py $GENERATE \
    --decoder-path "$decoder" --config-path "$config" --out-dir "$out/generated"
echo "pictures: $out/generated/images (what each step learned: $out/*/images)"
