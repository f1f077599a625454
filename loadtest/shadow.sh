#!/usr/bin/env bash
# The cost of a slow shadow for callers: mlp32 under a closed loop, in interleaved rounds without and with the shadow. Prints the
# ratio of the medians.
#
#   loadtest/shadow.sh [-n ROUNDS] [-s SECONDS] [-c CONNECTIONS] SLUICEGATE SLOW.onnx
#                      default 7, 4, 8; SLOW.onnx comes from loadtest/slow_model.py
#
# Load generator and server share the cores, so only the ratio means something. Needs wrk and curl.
set -euo pipefail

fail() { printf 'shadow: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

rounds=7 seconds=4 connections=8
while getopts n:s:c:h option; do
    case $option in
        n) rounds=$OPTARG ;;
        s) seconds=$OPTARG ;;
        c) connections=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[[ $# -eq 2 ]] || usage
for tool in wrk curl; do command -v "$tool" >/dev/null || fail "needs $tool, which is not installed."; done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
work=$(mktemp -d)
pid=
stop() {
    [[ -z $pid ]] || { kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; } || true
    rm -rf "$work"
}
trap stop EXIT

mkdir -p "$work/models/mlp32/2"
cp -r "$root/models/mlp32/1" "$work/models/mlp32/1"
cp "$2" "$work/models/mlp32/2/model.onnx"
data=$((20000 + RANDOM % 5000)) admin=$((25000 + RANDOM % 5000))
program=$(realpath "$1")
(cd "$root" && exec "$program" serve --models "$work/models" --listen "127.0.0.1:$data" --admin-listen "127.0.0.1:$admin" \
    --data-dir "$work/data") >"$work/log" 2>&1 &
pid=$!
for _ in {1..200}; do curl -fsS "127.0.0.1:$data/v2/health/ready" >/dev/null 2>&1 && break; sleep 0.1; done
curl -fsS "127.0.0.1:$data/v2/health/ready" >/dev/null || { cat "$work/log" >&2; fail "the server is not ready."; }

put() { # SHADOWS
    curl -fsS -X PUT "127.0.0.1:$admin/api/v1/models/mlp32/traffic" -H 'content-type: application/json' \
        -d "{\"split\":[{\"version\":\"1\",\"weight\":1}],\"shadows\":$1}" >/dev/null
}
measure() { # NAME
    local line
    line=$(wrk -t1 -c"$connections" -d"${seconds}s" -s "$here/mlp32.lua" "http://127.0.0.1:$data/v2/models/mlp32/infer" | grep RESULT)
    echo "$1 $line" | tee -a "$work/results"
}
for _ in $(seq "$rounds"); do
    put '[]'; measure without
    put '[{"version":"2","sample":1}]'; measure with
done
curl -fsS "127.0.0.1:$admin/metrics" | grep '^sluicegate_shadow'
awk '
    { for (i = 3; i <= NF; i++) { split($i, kv, "="); value[$1, kv[1], ++count[$1, kv[1]]] = kv[2] } if ($0 !~ /failed=0 broken=0/) bad = 1 }
    function median(name, key,   n, i, j, t, v) {
        n = count[name, key]; for (i = 1; i <= n; i++) v[i] = value[name, key, i] + 0
        for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (v[j] < v[i]) { t = v[i]; v[i] = v[j]; v[j] = t }
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
    }
    END {
        split("per_s p50_us p99_us", keys, " ")
        for (k = 1; k <= 3; k++) {
            a = median("without", keys[k]); b = median("with", keys[k])
            printf "%-7s without %8.0f   with %8.0f   ratio %.3f\n", keys[k], a, b, b / a
        }
        exit bad
    }' "$work/results"
