-- The requests of wrk, in rotation: `-- post 50` hits event-1 to event-50 in turn.
local requests, turn, kind = {}, 0, nil
local run = io.open("/dev/urandom", "rb"):read(8):gsub(".", function(byte) return string.format("%02x", byte:byte()) end)

local function body(content)
  return { ["Content-Type"] = "application/json" }, content
end

local make = {
  post = function(i) return wrk.format("POST", "/event/event-" .. i) end,
  by = function(i) return wrk.format("POST", "/event/event-" .. i, body('{"by":1}')) end,
  get = function(i) return wrk.format("GET", "/event/event-" .. i) end,
  webdis = function(i) return wrk.format("GET", "/INCR/event-" .. i) end,
}

function init(args)
  kind = args[1]
  local names = tonumber(args[2])
  if kind == "batch" then -- 1,000 objects over 50 event names
    local items = {}
    for i = 1, names do items[i] = '{"event":"event-' .. (i % 50 + 1) .. '"}' end
    requests[1] = wrk.format("POST", "/events", body("[" .. table.concat(items, ",") .. "]"))
  elseif kind == "mostly-post" or kind == "mostly-get" then -- nine of ten requests
    local most, other = make.post, make.get
    if kind == "mostly-get" then most, other = other, most end
    for i = 1, names * 10 do
      -- Each name is once at every position of ten, so that all names get the same mix.
      local name = (i + math.floor(i / names)) % names + 1
      requests[i] = (i % 10 == 0 and other or most)(name)
    end
  elseif kind ~= "key" then
    for i = 1, names do requests[i] = make[kind](i) end
  end
end

function request()
  turn = turn + 1
  if kind == "key" then -- a new key for each hit
    local path = "POST /event/event-" .. (turn % 50 + 1)
    return path .. " HTTP/1.1\r\nHost: bench\r\nIdempotency-Key: " .. run .. "-" .. turn .. "\r\n\r\n"
  end
  return requests[(turn - 1) % #requests + 1]
end

function done(summary, latency)
  local broken = summary.errors.connect + summary.errors.read + summary.errors.write
  io.write(string.format(
    'result {"responses": %d, "seconds": %f, "rejected": %d, "broken": %d, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, summary.duration / 1e6, summary.errors.status, broken,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  ))
end
