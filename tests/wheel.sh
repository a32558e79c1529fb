#!/usr/bin/env bash
# Build the wheel, install it with its dependencies into an empty environment, and distil from an empty directory.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$here"
"$BUILD" -m hatchling build -t wheel -d "$work/dist"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "$(echo "$work"/dist/*.whl)[demo,report]"
mkdir "$work/empty"
cd "$work/empty"
kdcluster() { env -u PYTHONPATH "$work/venv/bin/kdcluster" "$@"; }
kdcluster list
short=(--set train.steps=10 --set train.warmup_steps=0 --set teacher.train.steps=10 --set teacher.train.warmup_steps=0)
kdcluster submit demo --seeds 0 "${short[@]}" --backend local --wait
kdcluster results demo --seeds 0 "${short[@]}" --strict
kdcluster report demo --seeds 0 "${short[@]}" --output report.html && grep -q "<svg" report.html
