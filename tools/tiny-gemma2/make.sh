#!/usr/bin/env bash
# Makes assets/ from nothing but the package registries. Every step goes on where an earlier run stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
run=${1:-runs/tiny}
# glibc gives large blocks back to the system after every operation; kept, they save half of the time of a step.
export MALLOC_MMAP_THRESHOLD_=17179869184 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=67108864
cargo xtask libtorch
tiny() { cargo run --release --quiet -p tiny-gemma2 -- --run "$run" "$@"; }
[[ -e $run/corpus/train.jsonl ]] || python3 tools/tiny-gemma2/corpus.py "$run/corpus"
[[ -e $run/train.tokens ]] || tiny tokenizer
[[ -e $run/model/model.safetensors ]] || tiny train
[[ -e $run/sae/params.npz ]] || tiny sae
tiny ship
