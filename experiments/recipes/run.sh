#!/bin/sh
# What the recipes of docs/recipes.md change, beside the demo's settings: MNTP with BidirLM's masking and schedule, and 25
# supervised steps with plain InfoNCE, at two depths, and with Qwen3-Embedding's loss. What is finished is reused.
#   sh experiments/recipes/run.sh <folder of data> [overrides]
# The folder has the triplets of the supervised experiments (e5-sample) and stsbenchmark; runs/demo is there (make demo).
set -eu
[ $# -ge 1 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
data=$1
shift
python=${PYTHON:-python}

"$python" train.py name=recipes/bidirlm stage=mntp stage.masking_probability=0.3 \
    stage.schedule=warmup_stable_decay stage.warmup_steps=10 reuse=true "$@"
"$python" -m l2v.cli.export run=runs/recipes/bidirlm merge.base_ratio=0.5 output=runs/recipes/bidirlm-half
for name in bidirlm bidirlm-half; do
    "$python" evaluate.py encoder=runs/recipes/$name output=runs/recipes/$name
done

similarity() {
    "$python" evaluate.py evaluation=sts_languages 'evaluation.languages=[en]' evaluation.folder="$data" "$@"
}

supervised() {
    name=$1
    shift
    "$python" train.py name=recipes/"$name" stage=supervised init_from=runs/demo/mntp data=triplets \
        data.folder="$data/e5-sample" stage.global_batch_size=16 stage.max_steps=25 stage.validate_every=25 \
        export=adapter reuse=true "$@"
    similarity encoder=runs/recipes/"$name"
    similarity encoder=runs/recipes/"$name" layers=15 output=runs/recipes/"$name"-15
}

supervised plain "$@"
supervised depths 'stage.layers=[15]' "$@"
supervised qwen3 stage.loss.hard_negatives=own 'stage.loss.directions=[query-query,document-document]' \
    stage.loss.margin=0.1 "$@"
