-- Count a batch of postings. It follows stand.lua.
-- The work   moments, each [[minute, hour, day and total bucket], date, minute], and postings, each [which moment,
--            [event, by, ...], [key, request, owner] or false, whether capped, why another tag has refused it, or false,
--            [event, bucket, user or session, by, ...], whether each event is decided by itself]
-- Asked, it counts nothing and says {'asked', rows}: why a posting would be refused or what its key
-- has as an answer, else null. A claim, which is a key with an owner and no counts, is remembered then.
local AT_ONCE = 1000 -- fields in a call: Lua's stack has room for some thousands
local live_keys = prefix .. 'keys'
local moments, postings = unpack(work)
local totals = {} -- of the events of the batch
local days, offsets = {}, {} -- all of the batch; and of those that were corrected the key of what is added
local left = nil -- how many more names there may be: asked for once, at the first new name

local function recalled(key, minute, capped)
  local owned, expired = live_keys .. ':' .. key[3], minute - key_kept
  local found = redis.call('GET', prefix .. 'key:' .. key[1])
  if found then
    local request, since, date, row = string.match(found, '^(%S+) (%S+) (%S+) %[(.*)%]$')
    if tonumber(since) > expired then
      if request ~= key[2] then return '["mismatch"]' end
      return '["replayed","' .. date .. '"' .. (row ~= '' and ',' or '') .. row .. ']'
    end
  end
  redis.call('ZREMRANGEBYSCORE', live_keys, '-inf', expired)
  redis.call('ZREMRANGEBYSCORE', owned, '-inf', expired)
  if capped and key[3] ~= '' and (redis.call('ZCARD', live_keys) >= keys_max
      or redis.call('ZCARD', owned) >= math.max(1, math.floor(keys_max / 10))) then
    return '["keys"]'
  end
end

local function remember(key, minute, date, row)
  redis.call('SET', prefix .. 'key:' .. key[1], table.concat({key[2], minute, date, row}, ' '), 'EX', 2 * key_kept)
  if key[3] == '' then return end -- it belongs to another tag's bound
  for _, set in ipairs({live_keys, live_keys .. ':' .. key[3]}) do
    redis.call('ZADD', set, minute, key[1])
    redis.call('EXPIRE', set, 2 * key_kept)
  end
end

-- Why an event cannot be counted, after so many new ones in its posting.
local function refusal(day, event, by, capped, new)
  local known = totals[event]
  if not known and capped then
    left = left or names_left()
    if left <= new then return '"full"' end
  end
  -- a day's hits are never more than were counted in all, but a correction may set its count higher
  local count = known or 0
  if offsets[day] then
    count = math.max(count, number(prefix .. day, event) + math.max(0, number(offsets[day], event)))
  end
  if count + by > COUNT_MAX then return '"overflow"' end
end

local function refusal_of_all(day, counts, capped)
  local new = 0
  for i = 1, #counts, 2 do
    local reason = refusal(day, counts[i], counts[i + 1], capped, new)
    if reason then return '[' .. reason .. ']' end
    if not totals[counts[i]] then new = new + 1 end
  end
end

-- The row of what these come to, and the events that were refused apart.
local function count(moment, counts, capped, apart)
  local minute, hour, day = prefix .. moment[1][1], prefix .. moment[1][2], prefix .. moment[1][3]
  local offset, row, out, sum = offsets[moment[1][3]], {}, {}, 0
  for i = 1, #counts, 2 do
    local event, by = counts[i], counts[i + 1]
    local reason = apart and refusal(moment[1][3], event, by, capped, 0)
    if reason then
      row[i], row[i + 1], out[event] = reason, 0, true
    else
      local more = whole(by) -- once, and not in each call
      if left and not totals[event] then left = left - 1 end
      redis.call('HINCRBY', minute, event, more)
      redis.call('HINCRBY', hour, event, more)
      local value = redis.call('HINCRBY', day, event, more)
      if offset then value = value + number(offset, event) end
      totals[event] = redis.call('HINCRBY', total, event, more)
      row[i], row[i + 1] = whole(value), whole(totals[event])
      sum = sum + by
    end
  end
  moment.sum = moment.sum + sum
  return '[' .. table.concat(row, ',') .. ']', out
end

for _, moment in ipairs(moments) do
  local day = moment[1][3]
  if redis.call('EXISTS', prefix .. day .. ':offset') == 1 then offsets[day] = prefix .. day .. ':offset' end
  days[day], moment.sum = true, 0
end
local events, rows = {}, {}
for _, posting in ipairs(postings) do
  for i = 1, #posting[2], 2 do events[#events + 1] = posting[2][i] end
end
for begin = 1, #events, AT_ONCE do
  local values = redis.call('HMGET', total, unpack(events, begin, math.min(begin + AT_ONCE - 1, #events)))
  for i, value in ipairs(values) do totals[events[begin + i - 1]] = tonumber(value or nil) end
end
for i, posting in ipairs(postings) do
  local place, counts, key, capped, refused, marks, apart = unpack(posting)
  local moment = moments[place + 1]
  local buckets, date, minute = unpack(moment)
  local claim = key and key[3] ~= '' and #counts == 0
  if refused then
    rows[i] = '["' .. refused .. '"]'
  else
    rows[i] = key and recalled(key, minute, capped) or not apart and refusal_of_all(buckets[3], counts, capped) or nil
  end
  if not rows[i] and asked and not claim then
    rows[i] = 'null'
  elseif not rows[i] then
    local out
    rows[i], out = count(moment, counts, capped, apart)
    for m = 1, #marks, 4 do
      if not out[marks[m]] then mark(marks[m + 1], marks[m + 2], marks[m + 3]) end
    end
    if key then remember(key, whole(minute), date, rows[i]) end
  end
end
for _, moment in ipairs(moments) do
  for _, bucket in ipairs(moment.sum > 0 and moment[1] or {}) do add_to_all(bucket, moment.sum) end
end
if asked then return {'asked', '[' .. table.concat(rows, ',') .. ']'} end
table.insert(rows, 1, generations(days))
return stand('[' .. table.concat(rows, ',') .. ']')
