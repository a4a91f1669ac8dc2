-- Change what was counted, as an administrator wants it. It follows stand.lua.
-- The work   what: correct, delete, reset, restore, erase or nothing, and what it needs: see _change in redis.py.
-- Only `correct` and `restore` are told all their keys before; while a cluster moves this slot, the others may fail.
local day = prefix .. work.day

local function numbers(event)
  return {number(day, event) + number(day .. ':offset', event), number(total, event)}
end

local function starts(step)
  if step == 'total' then return {'0'} end
  return redis.call('ZRANGE', prefix .. 'starts:' .. step, 0, -1)
end

local function add(key, pairs_of)
  for i = 1, #pairs_of, 2 do redis.call('HINCRBY', key, pairs_of[i], pairs_of[i + 1]) end
end

-- Take an event out of a bucket of events.
local function take(key, event)
  local count = redis.call('HGET', key, event)
  if count then
    redis.call('HDEL', key, event)
    redis.call('HINCRBY', key, '', whole(-count))
  end
end

-- What else there is in a bucket.
local function each_of(what)
  for _, step in ipairs({'minute', 'day', 'total'}) do
    for _, start in ipairs(starts(step)) do
      local bucket = step .. ':' .. start
      for _, of in ipairs(redis.call('SMEMBERS', prefix .. 'ofs:' .. bucket)) do what(bucket, of) end
    end
  end
end

local does = {}

function does.correct(event, count, after_total)
  local known, before, all = redis.call('HEXISTS', total, event) == 1, numbers(event), numbers('')
  local after = {count or before[1], after_total or before[2]}
  if not known and names_left() < 1 then return '["full"]' end
  for i = 1, 2 do
    if all[i] - before[i] + after[i] > COUNT_MAX then return '["overflow"]' end
  end
  for _, of in ipairs({event, ''}) do
    redis.call('HINCRBY', day .. ':offset', of, whole(after[1] - before[1]))
    redis.call('HINCRBY', total, of, whole(after[2] - before[2]))
  end
  list(work.day .. ':offset')
  return before, after
end

function does.delete(event)
  local before = numbers(event)
  for _, step in ipairs({'minute', 'hour', 'day', 'total'}) do
    for _, start in ipairs(starts(step)) do take(prefix .. step .. ':' .. start, event) end
  end
  each_of(function(bucket, of)
    local key = bucket .. ':' .. of
    if of == 'user:' .. event or of == 'session:' .. event then
      redis.call('UNLINK', prefix .. key, prefix .. 'seen:' .. key)
      redis.call('SREM', prefix .. 'ofs:' .. bucket, of)
    elseif of == 'offset' or string.sub(of, 1, 5) == 'part:' then
      take(prefix .. key, event)
    end
  end)
  return before, {0, 0}
end

-- What was counted becomes a part of its own, and all of the day's hits are taken off from now on.
function does.reset()
  local part = work.day .. ':part:' .. whole(work.at)
  local before, hits, offset, counts, left = numbers(''), redis.call('HGETALL', day), {}, {}, {}
  local corrected = redis.call('HGETALL', day .. ':offset')
  for i = 1, #corrected, 2 do offset[corrected[i]] = tonumber(corrected[i + 1]) end
  for i = 1, #hits, 2 do
    local event, hit = hits[i], tonumber(hits[i + 1])
    counts[#counts + 1], counts[#counts + 2] = event, whole(hit + (offset[event] or 0))
    left[#left + 1], left[#left + 2] = event, whole(-hit)
    offset[event] = nil
  end
  for event, count in pairs(offset) do
    counts[#counts + 1], counts[#counts + 2] = event, whole(count)
  end
  redis.call('DEL', day .. ':offset')
  add(prefix .. part, counts)
  add(day .. ':offset', left)
  list(part)
  list(work.day .. ':offset')
  return before, {0, before[2]}
end

function does.erase(user)
  each_of(function(bucket, of)
    if string.sub(of, 1, 5) == 'user:' then redis.call('HDEL', prefix .. bucket .. ':' .. of, user) end
  end)
end

-- Add what another store had in a bucket.
function does.restore(bucket, kind, counts)
  if #counts == 0 then return end
  if bucket == 'total:0' then
    for i = 1, #counts, 2 do
      if number(total, counts[i]) + counts[i + 1] > COUNT_MAX then return '["overflow"]' end
    end
  end
  local sum = 0
  for i = 1, #counts, 2 do
    if kind == 'visits' then
      mark(bucket, counts[i], counts[i + 1])
    else
      redis.call('HINCRBY', prefix .. bucket, counts[i], whole(counts[i + 1]))
      sum = sum + counts[i + 1]
    end
  end
  if kind == 'hits' then
    add_to_all(bucket, sum)
  elseif kind == 'sums' then
    redis.call('HINCRBY', prefix .. bucket, '', whole(sum))
  end
  if kind ~= 'hits' then list(bucket) end
end

-- Let an estimate know what another one has seen.
function does.merge(bucket, sketch)
  local seen = prefix .. 'seen:' .. bucket
  local bytes = string.gsub(sketch, '..', function(hex) return string.char(tonumber(hex, 16)) end)
  redis.call('SET', seen .. ':other', bytes)
  redis.call('PFMERGE', seen, seen .. ':other')
  redis.call('DEL', seen .. ':other')
  list(bucket)
end

local function pair(values)
  return whole(values[1]) .. ',' .. whole(values[2])
end

local before, after = nil, nil
if does[work.what] then before, after = does[work.what](unpack(work.with)) end
local row, log = type(before) == 'string' and before or '[]', work.log
if after then
  row = '["corrected",' .. pair(before) .. ',' .. pair(after) .. ']'
  log = {'[' .. whole(work.at) .. ',"' .. work.what .. '",' .. cjson.encode(work.with[1])
    .. ',[' .. pair(before) .. '],[' .. pair(after) .. ']]'}
  redis.call('HINCRBY', day .. ':generation', '', 1)
  list(work.day .. ':generation')
end
for _, entry in ipairs(log) do
  redis.call('RPUSH', prefix .. 'log:' .. work.start, entry)
  redis.call('LTRIM', prefix .. 'log:' .. work.start, -log_max, -1)
end
return stand('[' .. generations({[work.day] = true}) .. ',' .. row .. ']')
