#!/usr/bin/env bash
# Compares Sluicegate with the floor: both under the same closed loop, in interleaved rounds. Prints the ratio of the medians.
#
#   loadtest/compare.sh [-n ROUNDS] [-s SECONDS] [-c CONNECTIONS] [-t WRK_THREADS] [-p] FLOOR SLUICEGATE
#                       default 7, 4, 32, 2
#   -p  pins the server to the first core and wrk to the others; steadier, because neither takes time from the other
#
# FLOOR and SLUICEGATE are each the URL of a running server (http://…/v2/models/mlp32/infer) or a program. A program is started
# on a free port, measured (including its CPU time per request) and stopped:
#
#   loadtest/compare.sh loadtest/floor/target/release/sluicegate-floor target/release/sluicegate
#
# A program after "tls:" is started with TLS and a certificate of its own. The cost of TLS:
#
#   loadtest/compare.sh target/release/sluicegate tls:target/release/sluicegate
#
# Rounds are interleaved because the speed of a shared machine changes more from minute to minute than the two servers differ. The
# median is used because stalls affect single rounds. The load generator uses the same cores, so only the ratio means something.
# SLUICEGATE_ARGS adds options to `sluicegate serve`. Exit code 1 when any answer was not 2xx. Needs wrk, curl and awk.
set -euo pipefail

say() { printf 'compare: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
usage() { sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

rounds=7 seconds=4 connections=32 wrk_threads=2 pinned=
while getopts n:s:c:t:ph option; do
    case $option in
        n) rounds=$OPTARG ;;
        s) seconds=$OPTARG ;;
        c) connections=$OPTARG ;;
        t) wrk_threads=$OPTARG ;;
        p) pinned=yes ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[[ $# -eq 2 ]] || usage
declare -a on_server=() on_wrk=()
if [[ $pinned ]]; then
    (($(nproc) > 1)) || fail "-p needs two cores."
    on_server=(taskset -c 0) on_wrk=(taskset -c "1-$(($(nproc) - 1))")
fi
for tool in wrk curl awk ${pinned:+taskset}; do
    command -v "$tool" >/dev/null || fail "needs $tool, which is not installed."
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
work=$(mktemp -d)
declare -a pids=() urls=() started=()
stop() {
    # Only processes started here, by their id.
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap stop EXIT

free_port() { # an unused port below the range from which the kernel assigns ports
    local port
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    fail "found no free port."
}

start() { # NAME PROGRAM-OR-URL
    if [[ $2 == http://* || $2 == https://* ]]; then
        urls+=("$2") started+=("")
        return
    fi
    local port program scheme=http
    local -a tls=()
    program=${2#tls:}
    [[ -x $program ]] || fail "$2 is neither a URL nor a program."
    port=$(free_port) program=$(realpath "$program")
    if [[ $2 == tls:* ]]; then
        scheme=https
        "$program" certificate --for 127.0.0.1 --dir "$work/$1-tls" >/dev/null
        tls=("SLUICEGATE__SERVER__TLS__CERTIFICATE=$work/$1-tls/server.crt" "SLUICEGATE__SERVER__TLS__KEY=$work/$1-tls/server.key")
    fi
    if [[ $(basename "$2") == *floor* ]]; then
        ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$root/.ort/libonnxruntime.so} \
            "${on_server[@]}" "$program" --listen "127.0.0.1:$port" --model "$root/models/mlp32/1/model.onnx" >"$work/$1.log" 2>&1 &
    else
        # shellcheck disable=SC2086 # several options in one variable
        # Without a supervisor, so that the process that was started is the one that is measured.
        (cd "$root" && SLUICEGATE__SERVER__SUPERVISE=false exec "${on_server[@]}" env "${tls[@]}" "$program" serve --models "$root/models" --listen "127.0.0.1:$port" \
            --admin-listen "127.0.0.1:$(free_port)" --data-dir "$work/$1-data" ${SLUICEGATE_ARGS:-}) >"$work/$1.log" 2>&1 &
    fi
    pids+=("$!") started+=("$!") urls+=("$scheme://127.0.0.1:$port/v2/models/mlp32/infer")
}

await() { # INDEX NAME: waits for an answer with 200 and prints its numbers
    local tries answer
    for ((tries = 0; tries < 300; tries++)); do
        if answer=$(curl -sfk --max-time 5 -H 'content-type: application/json' -d "@$here/mlp32.json" "${urls[$1]}"); then
            sed -E 's/.*"data":\[([^]]*)\].*/\1/' <<<"$answer"
            return
        fi
        [[ -z ${started[$1]} || -d /proc/${started[$1]} ]] || break
        sleep 0.1
    done
    [[ -f $work/$2.log ]] && tail -5 "$work/$2.log" >&2
    fail "$2 ended, or did not answer with 200 at ${urls[$1]} within 30 s."
}

ticks=$(getconf CLK_TCK)
cpu_us() { # PID: CPU time so far, in microseconds; skips the process name, which may contain spaces
    sed 's/.*) //' "/proc/$1/stat" | awk -v t="$ticks" '{ printf "%.0f", ($12 + $13) * 1e6 / t }'
}

measure() { # INDEX NAME ROUND SECONDS: runs wrk once and adds a line to the results
    local before=0 after=0 result cpu=-
    [[ -n ${started[$1]} ]] && before=$(cpu_us "${started[$1]}")
    result=$("${on_wrk[@]}" wrk -t"$wrk_threads" -c"$connections" -d"${4}s" -s "$here/mlp32.lua" "${urls[$1]}" | sed -n 's/^RESULT //p')
    [[ -n $result ]] || fail "wrk gave no result for $2."
    [[ -n ${started[$1]} ]] && after=$(cpu_us "${started[$1]}")
    local requests per_s p50_us p99_us failed broken seconds
    # shellcheck disable=SC2086,SC2229 # "name=value" words that mlp32.lua printed
    local $result
    ((after > before && requests > 0)) && cpu=$(awk -v u=$((after - before)) -v n="$requests" 'BEGIN { printf "%.1f", u / n }')
    [[ $3 == 0 ]] && return # the warm-up is not counted
    printf '%5s  %-10s %9s/s  p50 %6s us  p99 %7s us  cpu %6s us each  not 2xx %s, broken %s\n' \
        "$3" "$2" "$per_s" "$p50_us" "$p99_us" "$cpu" "$failed" "$broken"
    echo "$2 $per_s $cpu $((failed + broken))" >>"$work/results"
}

median() { # NAME COLUMN
    awk -v name="$1" -v column="$2" '$1 == name { print $column }' "$work/results" | sort -n |
        awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }' # the lower one for an even number
}

start floor "$1"
start sluicegate "$2"
floor_says=$(await 0 floor)
sluicegate_says=$(await 1 sluicegate)
[[ $floor_says == "$sluicegate_says" ]] ||
    say "the answers differ ($floor_says and $sluicegate_says): do both use the same model and engine?"

echo "closed loop, $connections connections, $wrk_threads wrk threads, $rounds rounds of $seconds s each, $(nproc) cores${pinned:+, the server on one of them}"
measure 0 floor 0 2
measure 1 sluicegate 0 2
for ((round = 1; round <= rounds; round++)); do
    # The order changes every round, so that neither always runs second.
    order=(0 1)
    ((round % 2)) || order=(1 0)
    for which in "${order[@]}"; do
        names=(floor sluicegate)
        measure "$which" "${names[$which]}" "$round" "$seconds"
    done
done

a=$(median floor 2) b=$(median sluicegate 2)
printf 'medians: floor %s/s at %s us CPU each, sluicegate %s/s at %s us CPU each\n' \
    "$a" "$(median floor 3)" "$b" "$(median sluicegate 3)"
# The spread of single rounds shows how reliable the ratio is.
awk -v a="$a" -v b="$b" '
    { if ($1 == "floor") floor[++f] = $2; else gate[++g] = $2 }
    END {
        for (i = 1; i <= f; i++) { r = gate[i] / floor[i]; if (i == 1 || r < low) low = r; if (r > high) high = r }
        printf "ratio %.3f (single rounds %.2f to %.2f)\n", b / a, low, high
    }' "$work/results"
errors=$(awk '{ n += $4 } END { print n + 0 }' "$work/results")
[[ $errors == 0 ]] || fail "$errors requests failed (not 2xx, or the connection broke)."
