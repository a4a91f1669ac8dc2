-- Count a commit. offset.lua is prepended: it documents KEYS and ARGV, and replies to a retry and to a wrong offset.
--
-- Work     [slots, groups]
--   slot   [[minute, hour, day and total bucket], date, UTC second of the minute]
--   group  [index of its slot from 0, [event, amount, ...], idempotency key or false, whether limits apply,
--          reason of another shard that rejected it or false, [[event, bucket, [visitor, amount, ...]], ...],
--          whether atomic]
--   key    [id, hash of the request, hash of the client or '' for a shard's part of a group]
-- Row      the saved form of a group's result, see app/stores/results.py
-- Reply    {'applied', results} or {'mismatch', offset}, see offset.lua
--          {'prepared', rows} if ARGV[2] is 'prepare': nothing was counted. A row is the rejection or the replayed result
--          of a group, or null if it would be counted. A key with a client and no amounts is claimed: it is saved.
local RESULT_EVENTS_MAX = 100 -- events of a row that is saved under an idempotency key, as in app/stores/rules.py
local live_keys = prefix .. 'keys'
local slots, groups = unpack(work)
local totals = {} -- all-time total by event of this commit; a new event has none
local days, corrections = {}, {} -- set of day buckets; key of the correction by each day bucket that has one
local free_names = nil -- how many more event names are allowed; read once, at the first new name

-- Return the present numbers of events, as the content of a row.
local function present_numbers(day, amounts)
  local numbers = {}
  for i = 1, #amounts, 2 do
    local count = get_count(prefix .. day, amounts[i])
    if corrections[day] then count = count + get_count(corrections[day], amounts[i]) end
    numbers[i], numbers[i + 1] = to_integer(count), to_integer(totals[amounts[i]] or 0)
  end
  return table.concat(numbers, ',')
end

-- Return the row for a group whose idempotency key was used before or is not allowed, or nil if it has to be counted.
local function check_idempotency(key, minute, limited, day, today, amounts)
  local client_keys, expired = live_keys .. ':' .. key[3], minute - key_ttl
  local saved = redis.call('GET', prefix .. 'key:' .. key[1])
  if saved then
    local request, since, date, row = string.match(saved, '^(%S+) (%S+) (%S+) %[(.*)%]$')
    if tonumber(since) > expired then
      if request ~= key[2] then return '["mismatch"]' end
      if row == '' and #amounts > 0 then date, row = today, present_numbers(day, amounts) end
      return '["replayed","' .. date .. '"' .. (row ~= '' and ',' or '') .. row .. ']'
    end
  end
  if limited and key[3] ~= '' and (redis.call('ZCOUNT', live_keys, '(' .. expired, '+inf') >= keys_max
      or redis.call('ZCOUNT', client_keys, '(' .. expired, '+inf') >= math.max(1, math.floor(keys_max / 10))) then
    return '["keys"]'
  end
end

-- Save the row of a group under its idempotency key, and delete expired keys. This is not done earlier, because the first
-- write of a script must be one that Redis rejects if its memory is full: after it, Redis rejects no other.
-- Redis keeps the row twice as long as it is recognised, because its age is that of the time slot, which a late commit may
-- have in the past.
local function save_idempotency(key, minute, date, row)
  redis.call('SET', prefix .. 'key:' .. key[1], table.concat({key[2], minute, date, row}, ' '), 'EX', 2 * key_ttl)
  if key[3] == '' then return end -- the shard in which the key was claimed counts it for the client
  for _, set in ipairs({live_keys, live_keys .. ':' .. key[3]}) do
    redis.call('ZREMRANGEBYSCORE', set, '-inf', minute - key_ttl)
    redis.call('ZADD', set, minute, key[1])
    redis.call('EXPIRE', set, 2 * key_ttl)
  end
end

-- Return the reason for rejecting an event, as JSON, or nil. `new_names` new names come before it in its group.
local function rejection(day, event, by, limited, new_names)
  local total = totals[event]
  if not total and limited then
    free_names = free_names or count_free_names()
    if free_names <= new_names then return '"full"' end
  end
  -- A day's hits never exceed the total, but a correction may raise its count above the total.
  local count = total or 0
  if corrections[day] then
    count = math.max(count, get_count(prefix .. day, event) + math.max(0, get_count(corrections[day], event)))
  end
  if count + by > COUNT_MAX then return '"overflow"' end
end

-- Return the row for an atomic group of which one event cannot be counted, or nil.
local function group_rejection(day, amounts, limited)
  local new_names = 0
  for i = 1, #amounts, 2 do
    local reason = rejection(day, amounts[i], amounts[i + 1], limited, new_names)
    if reason then return '[' .. reason .. ']' end
    if not totals[amounts[i]] then new_names = new_names + 1 end
  end
end

-- Count a group. Return its row and the set of rejected events, which only a group that is not atomic may have.
local function count_group(slot, amounts, limited, atomic)
  local minute_key, hour_key, day_key = prefix .. slot[1][1], prefix .. slot[1][2], prefix .. slot[1][3]
  local correction, row, rejected, sum = corrections[slot[1][3]], {}, {}, 0
  for i = 1, #amounts, 2 do
    local event, by = amounts[i], amounts[i + 1]
    local reason = not atomic and rejection(slot[1][3], event, by, limited, 0)
    if reason then
      row[i], row[i + 1], rejected[event] = reason, 0, true
    else
      local amount = to_integer(by) -- converted once for the four calls
      if free_names and not totals[event] then free_names = free_names - 1 end
      redis.call('HINCRBY', minute_key, event, amount)
      redis.call('HINCRBY', hour_key, event, amount)
      local count = redis.call('HINCRBY', day_key, event, amount)
      if correction then count = count + get_count(correction, event) end
      totals[event] = redis.call('HINCRBY', total_key, event, amount)
      row[i], row[i + 1] = to_integer(count), to_integer(totals[event])
      sum = sum + by
    end
  end
  slot.sum = slot.sum + sum
  return '[' .. table.concat(row, ',') .. ']', rejected
end

for _, slot in ipairs(slots) do
  local day = slot[1][3]
  if redis.call('EXISTS', prefix .. day .. ':offset') == 1 then corrections[day] = prefix .. day .. ':offset' end
  days[day], slot.sum = true, 0
end
local events, rows = {}, {}
for _, group in ipairs(groups) do
  for i = 1, #group[2], 2 do events[#events + 1] = group[2][i] end
end
for first = 1, #events, FIELDS_PER_CALL do
  local values = redis.call('HMGET', total_key, unpack(events, first, math.min(first + FIELDS_PER_CALL - 1, #events)))
  for i, value in ipairs(values) do totals[events[first + i - 1]] = tonumber(value or nil) end
end
for index, group in ipairs(groups) do
  local slot_index, amounts, key, limited, rejected_elsewhere, visits, atomic = unpack(group)
  local slot = slots[slot_index + 1]
  local buckets, date, minute = unpack(slot)
  local claim = key and key[3] ~= '' and #amounts == 0
  local row = nil
  if rejected_elsewhere then
    row = '["' .. rejected_elsewhere .. '"]'
  else
    row = key and check_idempotency(key, minute, limited, buckets[3], date, amounts) or atomic and group_rejection(buckets[3], amounts, limited)
  end
  if not row and preparing and not claim then
    row = 'null'
  elseif not row then
    local rejected
    row, rejected = count_group(slot, amounts, limited, atomic)
    for _, visit in ipairs(visits) do
      if not rejected[visit[1]] then count_visitors(visit[2], visit[3]) end
    end
    if key then
      save_idempotency(key, to_integer(minute), date, #amounts > 2 * RESULT_EVENTS_MAX and '[]' or row)
    end
  end
  rows[index] = row
end
for _, slot in ipairs(slots) do
  for _, bucket in ipairs(slot.sum > 0 and slot[1] or {}) do add_to_sum(bucket, slot.sum) end
end
if preparing then return {'prepared', '[' .. table.concat(rows, ',') .. ']'} end
table.insert(rows, 1, encode_generations(days))
return save_offset('[' .. table.concat(rows, ',') .. ']')
