-- Sends the bodies named after `--` in turn (the first names their Content-Type) and prints, after wrk's own
-- summary, one line `sous KEY VALUE COUNT` for every bucket of latency (microseconds) and every status.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
  thread:set("turn", #threads)
end

function init(args)
  statuses = {}
  bodies = {}
  content_type = args[1]
  for i = 2, #args do
    local file = assert(io.open(args[i], "rb"))
    bodies[i - 1] = file:read("*a")
    file:close()
  end
end

function request()
  turn = turn % #bodies + 1
  return wrk.format("POST", nil, { ["Content-Type"] = content_type }, bodies[turn])
end

function response(status)
  local key = tostring(status)
  statuses[key] = (statuses[key] or 0) + 1
end

function done(summary, latency)
  local errors = summary.errors
  for i = 1, #latency do
    print("sous latency_us", latency(i))
  end
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("statuses")) do
      print("sous status", status, count)
    end
  end
  print("sous status", 0, errors.connect + errors.read + errors.write + errors.timeout)
  print("sous total", summary.duration, summary.bytes)
end
