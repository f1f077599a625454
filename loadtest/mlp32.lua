-- A wrk script: sends one row of 32 floats to the model `mlp32` as an Open Inference Protocol body (mlp32.json).
--
--     wrk -t2 -c32 -d10s -s loadtest/mlp32.lua http://127.0.0.1:8080/v2/models/mlp32/infer
--
-- The request is built once. There is no response() hook, because it would cost the load generator more than a prediction costs the
-- server. wrk itself counts answers with a status above 399 and broken connections; done() prints them.

local folder = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
local file = assert(io.open(folder .. "mlp32.json"))

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = file:read("*l")
file:close()

-- compare.sh reads this line.
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    "RESULT requests=%d seconds=%.3f per_s=%.0f p50_us=%.0f p99_us=%.0f failed=%d broken=%d\n",
    summary.requests, summary.duration / 1e6, summary.requests / (summary.duration / 1e6),
    latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
