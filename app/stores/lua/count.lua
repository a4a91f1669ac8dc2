-- Count a commit. offset.lua is prepended: it documents KEYS and ARGV, and replies to a retry and to a wrong offset.
--
-- Work     [slots, groups]
--   slot   [[minute, hour, day and total bucket], date, UTC second of the minute]
--   group  [index of its slot from 0, [event, ...], [amount, ...], idempotency key or false, whether limits apply,
--          reason of another shard that rejected it or false, [[event, bucket, [visitor, amount, ...]], ...],
--          whether atomic]
--   key    [id, hash of the request, hash of the client or '' for a shard's part of a group]
-- Row      the saved form of a group's result, see app/stores/results.py
-- Reply    {'applied', results} or {'mismatch', offset}, see offset.lua
--          {'prepared', rows} if ARGV[2] is 'prepare': nothing was counted. A row is the rejection or the replayed result
--          of a group, or null if it would be counted. A key with a client and no amounts is claimed: it is saved, and
--          released if its group comes again with the reason of another shard.
local RESULT_EVENTS_MAX = 100 -- events of a row that is saved under an idempotency key, as in app/stores/rules.py
local live_keys = prefix .. 'keys'
local slots, groups = unpack(work)
local days, corrections = {}, {} -- set of day buckets; key of the correction by each day bucket that has one
local free_names = 0 -- at least so many new event names are allowed
local total_sum = get_count(total_key, '') -- of all events, with those of this commit
-- Amount by event of the prepared groups; those of these events that may be new; how many of the others are new.
local prepared, unchecked_events, prepared_names = {}, {}, 0
local call, format = redis.call, string.format -- Lua finds a local more quickly
local amount_texts = {} -- by amount

-- Return the numbers of events in a hash as text, in their order; false for an event that it does not have.
local function read_numbers(key, events)
  local numbers = {}
  for first = 1, #events, FIELDS_PER_CALL do
    local last = math.min(first + FIELDS_PER_CALL - 1, #events)
    for i, number in ipairs(redis.call('HMGET', key, unpack(events, first, last))) do numbers[first + i - 1] = number end
  end
  return numbers
end

-- Return the corrections of events on a day, as read_numbers does; an empty table if the day has none.
local function read_corrections(day, events)
  return corrections[day] and read_numbers(corrections[day], events) or {}
end

-- Return the present numbers of events, as the content of a row.
local function present_numbers(day, events)
  local row, counts, totals = {}, read_numbers(prefix .. day, events), read_numbers(total_key, events)
  local added = read_corrections(day, events)
  for i = 1, #events do
    row[2 * i - 1], row[2 * i] = to_integer((counts[i] or 0) + (added[i] or 0)), totals[i] or '0'
  end
  return table.concat(row, ',')
end

-- Return the row for a group whose idempotency key was used before or is not allowed, or nil if it has to be counted.
local function check_idempotency(key, minute, limited, day, today, events)
  local client_keys, expired = live_keys .. ':' .. key[3], minute - key_ttl
  local saved = redis.call('GET', prefix .. 'key:' .. key[1])
  if saved then
    local request, since, date, row = string.match(saved, '^(%S+) (%S+) (%S+) %[(.*)%]$')
    if tonumber(since) > expired then
      if request ~= key[2] then return '["mismatch"]' end
      if row == '' and #events > 0 then date, row = today, present_numbers(day, events) end
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

-- Release the claim of a key, so that another request may use it.
local function release_claim(key)
  local saved = redis.call('GET', prefix .. 'key:' .. key[1])
  if not saved or string.match(saved, '^%S+') ~= key[2] then return end
  redis.call('DEL', prefix .. 'key:' .. key[1])
  for _, set in ipairs({live_keys, live_keys .. ':' .. key[3]}) do redis.call('ZREM', set, key[1]) end
end

-- Return how many new event names are allowed after those of the prepared groups.
local function count_names_left()
  for _, total in ipairs(read_numbers(total_key, unchecked_events)) do
    if not total then prepared_names = prepared_names + 1 end
  end
  unchecked_events = {}
  return count_free_names() - prepared_names
end

-- Remember that a group will be counted, so that later groups of the commit find the limits as they will be.
local function prepare_group(slot, events, amounts, rejections)
  for i, event in ipairs(events) do
    if not rejections[event] then
      if not prepared[event] then unchecked_events[#unchecked_events + 1] = event end
      prepared[event] = (prepared[event] or 0) + amounts[i]
      slot.hits, total_sum = slot.hits + amounts[i], total_sum + amounts[i]
    end
  end
end

-- Return the reasons, as JSON by event, for the events of a group that cannot be counted, and the first of these reasons.
-- `added` are their corrections.
local function find_rejections(slot, events, amounts, added, limited)
  local sum, most_added = 0, 0
  for _, by in ipairs(amounts) do sum = sum + by end
  for _, correction in ipairs(added) do most_added = math.max(most_added, correction or 0) end
  if limited and free_names < #events then free_names = count_names_left() end
  local has_names = not limited or free_names >= #events
  free_names = free_names - #events -- all of them may be new
  -- No event has more than the sum of all events, so that usually none has to be read.
  if has_names and math.max(total_sum, slot.hits + most_added) + sum <= COUNT_MAX then return {} end
  local names_left = limited and count_names_left() or math.huge
  local totals, counts = read_numbers(total_key, events), read_numbers(prefix .. slot[1][3], events)
  local rejections, first_reason = {}, nil
  for i, event in ipairs(events) do
    local is_new = not totals[i] and not prepared[event]
    local count = math.max(totals[i] or 0, (counts[i] or 0) + (added[i] or 0)) + (prepared[event] or 0)
    local reason = is_new and names_left < 1 and '"full"' or count + amounts[i] > COUNT_MAX and '"overflow"'
    if reason then
      rejections[event], first_reason = reason, first_reason or reason
    elseif is_new then
      names_left = names_left - 1
    end
  end
  return rejections, first_reason
end

-- Count the events of a group that are not rejected. Return its row.
local function count_group(slot, events, amounts, added, rejections)
  local minute_key, hour_key, day_key = prefix .. slot[1][1], prefix .. slot[1][2], prefix .. slot[1][3]
  local row, sum = {}, 0
  for i, event in ipairs(events) do
    local by, reason = amounts[i], rejections[event]
    if reason then
      row[2 * i - 1], row[2 * i] = reason, 0
    else
      local amount = amount_texts[by] or to_integer(by) -- converted once for the four calls
      amount_texts[by] = amount
      call('HINCRBY', minute_key, event, amount)
      call('HINCRBY', hour_key, event, amount)
      local count = call('HINCRBY', day_key, event, amount) + (added[i] or 0)
      row[2 * i - 1], row[2 * i] = format('%.0f', count), format('%.0f', call('HINCRBY', total_key, event, amount))
      sum = sum + by
    end
  end
  slot.sum, slot.hits, total_sum = slot.sum + sum, slot.hits + sum, total_sum + sum
  return '[' .. table.concat(row, ',') .. ']'
end

for _, slot in ipairs(slots) do
  local day = slot[1][3]
  if redis.call('EXISTS', prefix .. day .. ':offset') == 1 then corrections[day] = prefix .. day .. ':offset' end
  days[day], slot.sum, slot.hits = true, 0, get_count(prefix .. day, '')
end
local rows, released_keys = {}, {}
for index, group in ipairs(groups) do
  local slot_index, events, amounts, key, limited, rejected_elsewhere, visits, atomic = unpack(group)
  local slot = slots[slot_index + 1]
  local buckets, date, minute = unpack(slot)
  local claim = key and key[3] ~= '' and #events == 0
  local row, added, rejections, first_reason = nil, nil, nil, nil
  if rejected_elsewhere then
    row = '["' .. rejected_elsewhere .. '"]'
    if claim then released_keys[#released_keys + 1] = key end
  else
    row = key and check_idempotency(key, minute, limited, buckets[3], date, events)
  end
  if not row then
    added = read_corrections(buckets[3], events)
    rejections, first_reason = find_rejections(slot, events, amounts, added, limited)
    if atomic and first_reason then row = '[' .. first_reason .. ']' end
  end
  if not row and preparing and not claim then
    row = 'null'
    prepare_group(slot, events, amounts, rejections)
  elseif not row then
    row = count_group(slot, events, amounts, added, rejections)
    for _, visit in ipairs(visits) do
      if not rejections[visit[1]] then count_visitors(visit[2], visit[3]) end
    end
    if key then
      save_idempotency(key, to_integer(minute), date, #events > RESULT_EVENTS_MAX and '[]' or row)
    end
  end
  rows[index] = row
end
for _, slot in ipairs(slots) do
  for _, bucket in ipairs(slot.sum > 0 and slot[1] or {}) do add_to_sum(bucket, slot.sum) end
end
if preparing then return {'prepared', '[' .. table.concat(rows, ',') .. ']'} end
table.insert(rows, 1, encode_generations(days))
local reply = save_offset('[' .. table.concat(rows, ',') .. ']')
for _, key in ipairs(released_keys) do release_claim(key) end
return reply
