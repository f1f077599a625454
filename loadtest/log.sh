#!/usr/bin/env bash
# The cost of the prediction log: mlp32 under a closed loop, one server without the log and one with it, in interleaved rounds.
#
#   loadtest/log.sh [-n ROUNDS] [-s SECONDS] [-c CONNECTIONS] SLUICEGATE [memory|disk]
#                   default 7, 4, 32; `acknowledge` of the log: memory
#
# Prints the lines of compare.sh ("floor" is the server without the log) and the status of the log. Needs wrk and curl.
set -euo pipefail

fail() { printf 'log: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

declare -a options=()
while getopts n:s:c:h option; do
    case $option in
        n | s | c) options+=("-$option" "$OPTARG") ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[[ $# -eq 1 || $# -eq 2 ]] || usage

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
work=$(mktemp -d)
declare -a pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap stop EXIT
program=$(realpath "$1")
base=$((20000 + RANDOM % 5000))

start() { # NAME PORT; settings of the log come from the environment
    (cd "$root" && exec "$program" serve --models "$root/models" --listen "127.0.0.1:$2" --admin-listen "127.0.0.1:$(($2 + 1))" \
        --data-dir "$work/$1") >"$work/$1.log" 2>&1 &
    pids+=("$!")
    for _ in {1..200}; do curl -fsS "127.0.0.1:$2/v2/health/ready" >/dev/null 2>&1 && return; sleep 0.1; done
    cat "$work/$1.log" >&2
    fail "the server $1 is not ready."
}
SLUICEGATE__PREDICTION_LOG__ENABLED=false start without "$base"
SLUICEGATE__PREDICTION_LOG__ACKNOWLEDGE=${2:-memory} start with "$((base + 10))"
"$here/compare.sh" "${options[@]}" "http://127.0.0.1:$base/v2/models/mlp32/infer" "http://127.0.0.1:$((base + 10))/v2/models/mlp32/infer"
curl -fsS "127.0.0.1:$((base + 11))/api/v1/log"
echo
