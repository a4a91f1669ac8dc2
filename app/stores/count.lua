-- Count a batch of postings. It follows stand.lua.
-- The work   moments, each [[minute, hour, day and total bucket], date, minute], and postings, each [which moment,
--            [event, by, ...], [key, request, owner] or false, whether capped, why another tag has refused it, or false,
--            [bucket, user or session, by, ...]]
-- Asked, it counts nothing and says {'asked', rows}: why a posting would be refused or what its key
-- has as an answer, else null. A claim, which is a key with an owner and no counts, is remembered then.
local live_keys = prefix .. 'keys'
local offsets, days = {}, {} -- of the days that were corrected; and all days of the batch

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

local function refusal(day, counts, capped)
  local left = nil -- asked for once, at the first new name
  for i = 1, #counts, 2 do
    local known = redis.call('HGET', total, counts[i])
    if not known and capped then
      left = (left or names_left()) - 1
      if left < 0 then return '["full"]' end
    end
    -- a day's hits are never more than were counted in all, but a correction may set its count higher
    local count = math.max(tonumber(known or 0), offsets[day] and number(prefix .. day, counts[i])
      + math.max(0, number(offsets[day], counts[i])) or 0)
    if count + counts[i + 1] > COUNT_MAX then return '["overflow"]' end
  end
end

local sums = {} -- of all events, by bucket

local function count(buckets, counts)
  local row = {}
  for i = 1, #counts, 2 do
    local by = whole(counts[i + 1]) -- once, and not in each call
    for b, bucket in ipairs(buckets) do
      local value = redis.call('HINCRBY', prefix .. bucket, counts[i], by)
      sums[bucket] = (sums[bucket] or 0) + counts[i + 1]
      if b == 3 and offsets[bucket] then value = value + number(offsets[bucket], counts[i]) end
      if b > 2 then row[i + b - 3] = whole(value) end
    end
  end
  return '[' .. table.concat(row, ',') .. ']'
end

local rows = {}
local moments, postings = unpack(work)
for _, moment in ipairs(moments) do
  local day = moment[1][3]
  if redis.call('EXISTS', prefix .. day .. ':offset') == 1 then offsets[day] = prefix .. day .. ':offset' end
  days[day] = true
end
for i, posting in ipairs(postings) do
  local moment, counts, key, capped, refused, marks = unpack(posting)
  local buckets, date, minute = unpack(moments[moment + 1])
  local claim = key and key[3] ~= '' and #counts == 0
  if refused then
    rows[i] = '["' .. refused .. '"]'
  else
    rows[i] = key and recalled(key, minute, capped)
      or refusal(buckets[3], counts, capped)
  end
  if not rows[i] and asked and not claim then
    rows[i] = 'null'
  elseif not rows[i] then
    rows[i] = count(buckets, counts)
    for m = 1, #marks, 3 do mark(marks[m], marks[m + 1], marks[m + 2]) end
    if key then remember(key, whole(minute), date, rows[i]) end
  end
end
for bucket, sum in pairs(sums) do add_to_all(bucket, sum) end
if asked then return {'asked', '[' .. table.concat(rows, ',') .. ']'} end
table.insert(rows, 1, generations(days))
return stand('[' .. table.concat(rows, ',') .. ']')
