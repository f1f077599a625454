#!/usr/bin/env bash
# The cost of traces: mlp32 under a closed loop, a server without a collector and one with it, in interleaved rounds.
#
#   loadtest/tracing.sh [-n ROUNDS] [-s SECONDS] [-c CONNECTIONS] [-p] SLUICEGATE [RATE...]
#                       default 7, 4, 32; RATE is tracing.sample_rate, default 0 and 0.01: one comparison for each
#   -p  pins the server to the first core and wrk to the others
#
# Prints the lines of compare.sh ("floor" is the server without a collector) and what the collector got. The collector is
# tests/python/otlp_collector.py, which counts the messages and does not read them, so that it takes no time from the two servers.
# PYTHON names the Python with grpcio, default .venv/bin/python. Needs wrk and curl.
set -euo pipefail

fail() { printf 'tracing: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

declare -a options=()
while getopts n:s:c:ph option; do
    case $option in
        n | s | c) options+=("-$option" "$OPTARG") ;;
        p) options+=("-p") ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[[ $# -ge 1 ]] || usage
program=$(realpath "$1")
shift
[[ -x $program ]] || fail "$program is not a program."
rates=("$@")
[[ $# -gt 0 ]] || rates=(0 0.01)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
work=$(mktemp -d)
pid=
stop() {
    [[ -z $pid ]] || { kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; } || true
    rm -rf "$work"
}
trap stop EXIT

for rate in "${rates[@]}"; do
    rm -f "$work/collector"
    "${PYTHON:-$root/.venv/bin/python}" "$root/tests/python/otlp_collector.py" count >"$work/collector" &
    pid=$!
    for _ in {1..200}; do [[ -s $work/collector ]] && break; sleep 0.1; done
    [[ -s $work/collector ]] || fail "the collector does not start."
    port=$(head -n 1 "$work/collector")
    cat >"$work/traced" <<END
#!/bin/sh
export SLUICEGATE__TRACING__OTLP_ENDPOINT=http://127.0.0.1:$port SLUICEGATE__TRACING__PROTOCOL=grpc SLUICEGATE__TRACING__SAMPLE_RATE=$rate
exec "$program" "\$@"
END
    chmod +x "$work/traced"
    echo "tracing.sample_rate = $rate"
    "$here/compare.sh" "${options[@]}" "$program" "$work/traced"
    sleep 0.5 # the last line of the collector
    kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true
    pid=
    got=$(tail -n 1 "$work/collector")
    [[ $got == *messages* ]] || got="0 messages"
    echo "the collector got $got"
    [[ $rate =~ ^0*(\.0*)?$ || $got != "0 messages" ]] || fail "no span arrived at a rate of $rate."
done
