#!/usr/bin/env bash
# From nothing to pictures: make the environment, draw a data set, train every model, generate, evaluate, report.
# A second run goes on where the first one stopped, or ends at once.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/demo.sh [--quick] [--size 64|128] [--source avatars|openmoji] [--device DEVICE]
                            [--out-dir DIR] [--overwrite] [--verify]

  --quick      a complete pass in under 3 minutes, at 32×32 pixels: to see that everything works
  --size       pixels a side: 64, the default, or 128, which takes about an hour on two CPU cores
  --source     avatars (cartoon faces, the default) or openmoji (emoji)
  --device     auto, cpu, cuda or mps [auto]
  --out-dir    where the data and all that is learned go [out/demo-SOURCE, out/demo-128-SOURCE or out/quick-SOURCE]
  --overwrite  replace what an earlier recipe, data set or command left there; needed after a recipe was edited
  --verify     read all data once, where files were moved or copied so that their times changed
TEXT
}

source_name=avatars recipe= size= device=auto out= flags=() overwrite=
while [ $# -gt 0 ]; do
    case $1 in
        --quick) recipe=tiny-32 prefix=quick; shift ;;
        --size | --source | --device | --out-dir)
            if [ $# -lt 2 ]; then echo "error: $1 needs a value" >&2; exit 2; fi
            case $1 in --size) size=$2 ;; --source) source_name=$2 ;; --device) device=$2 ;; --out-dir) out=$2 ;; esac
            shift 2 ;;
        --overwrite) flags+=("$1") overwrite=$1; shift ;;
        --verify) flags+=("$1"); shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; echo "error: unknown argument $1" >&2; exit 2 ;;
    esac
done
case $source_name in
    avatars | openmoji) ;;
    *) echo "error: --source $source_name is unknown; give avatars or openmoji" >&2; exit 2 ;;
esac
case $recipe$size in
    tiny-32) ;;
    '' | 64) recipe=demo-64 prefix=demo ;;
    128) recipe=laptop-128 prefix=demo-128 ;;
    tiny-32*) echo "error: --size $size: --quick is for 32 pixels; leave one of them out" >&2; exit 2 ;;
    *) echo "error: --size $size: the demo has recipes for 64 and 128 pixels" >&2; exit 2 ;;
esac
case $out in
    '') out=out/$prefix-$source_name ;;
    /*) ;;
    *) out=$PWD/$out ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/signals.sh
source scripts/environment.sh
ensure_environment requirements.txt requirements-demo.txt requirements-eval.txt
source "configs/$recipe/recipe.sh"
attended .venv/bin/python -m scripts.demo_data "$source_name" --out-dir "$out/data" \
    --image-size "$IMAGE_SIZE" --num-images "$NUM_IMAGES" $overwrite
export PYTHON=$PWD/.venv/bin/python
attended bash scripts/train_cascade.sh "$recipe" "$out/data/dataset.json" "$out" \
    --device "$device" ${flags[@]+"${flags[@]}"}

# newer FILE: whether a step has ended since FILE was written, or there is none.
newer() { [ ! -f "$1" ] || [ -n "$(find "$out/.done" -type f -newer "$1")" ]; }
if newer "$out/evaluation/evaluation.json" || ! grep -q '"side"' "$out/evaluation/evaluation.json"; then
    echo "== evaluation"
    attended .venv/bin/python -m scripts.evaluate "$out" --device "$device"
fi
if newer "$out/report.html" || [ "$out/evaluation/evaluation.json" -nt "$out/report.html" ]; then
    attended .venv/bin/python -m scripts.report "$out"
fi
echo "play with it: .venv/bin/pip install -r requirements-app.txt && .venv/bin/python -m scripts.playground $out"
echo "report: $out/report.html"
