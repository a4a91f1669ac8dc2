-- Count a batch, exactly once: app/stores/base.py has the contract.
-- KEYS[1]  the source: a hash of its offset and of the answers given there
-- ARGV     prefix of every other key (same hash tag) | at | next | most names, or -1 | most keys, or -1
--          | seconds a source is kept | seconds a key is kept | postings as JSON, each
--          [[minute, hour, day and total bucket], [event, by, ...], date, minute, [key, request, owner] or false]
-- Answers  {1, rows as JSON} when the batch is counted, now or before; {0, offset} when the source stands elsewhere.
-- A script runs alone, and checks each posting before its first write, so that nothing is half done.
local COUNT_MAX = 9007199254740991
local prefix, at, next_offset = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local names_max, keys_max, key_kept = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
local live_keys = prefix .. 'keys'

local offset = redis.call('HGET', KEYS[1], 'offset') or '0'
if offset == next_offset then
  return {1, redis.call('HGET', KEYS[1], 'answers')}
elseif tonumber(offset) ~= at then
  return {0, offset}
end

local function recalled(key, minute)
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
  if keys_max >= 0 and (redis.call('ZCARD', live_keys) >= keys_max
      or redis.call('ZCARD', owned) >= math.max(1, math.floor(keys_max / 10))) then
    return '["keys"]'
  end
end

local function remember(key, minute, date, row)
  redis.call('SET', prefix .. 'key:' .. key[1], table.concat({key[2], minute, date, row}, ' '), 'EX', 2 * key_kept)
  for _, set in ipairs({live_keys, live_keys .. ':' .. key[3]}) do
    redis.call('ZADD', set, minute, key[1])
    redis.call('EXPIRE', set, 2 * key_kept)
  end
end

local function refusal(day, total, counts)
  local names = nil -- asked for once, at the first new name
  for i = 1, #counts, 2 do
    local known = redis.call('HGET', total, counts[i])
    if not known and names_max >= 0 then
      names = (names or math.max(redis.call('HLEN', total) - 1, 0)) + 1 -- '' is no name
      if names > names_max then return '["full"]' end
    end
    local count = redis.call('HGET', day, counts[i]) or 0
    if math.max(tonumber(count), tonumber(known or 0)) + counts[i + 1] > COUNT_MAX then return '["overflow"]' end
  end
end

local function count(buckets, counts)
  local sum, row = 0, {}
  for i = 1, #counts, 2 do
    sum = sum + counts[i + 1]
    for _, bucket in ipairs(buckets) do
      redis.call('HINCRBY', prefix .. bucket, counts[i], counts[i + 1])
    end
    row[i] = redis.call('HGET', prefix .. buckets[3], counts[i])
    row[i + 1] = redis.call('HGET', prefix .. buckets[4], counts[i])
  end
  for i, bucket in ipairs(buckets) do
    local new = redis.call('HEXISTS', prefix .. bucket, '') == 0
    redis.call('HINCRBY', prefix .. bucket, '', string.format('%.0f', sum))
    if new and i < 4 then -- what can be pruned is listed, by its step
      local step, start = string.match(bucket, '^(%a+):(%-?%d+)$')
      redis.call('ZADD', prefix .. 'starts:' .. step, start, start)
    end
  end
  return '[' .. table.concat(row, ',') .. ']'
end

local rows = {}
for i, posting in ipairs(cjson.decode(ARGV[8])) do
  local buckets, counts, date, minute, key = unpack(posting)
  rows[i] = key and recalled(key, minute) or refusal(prefix .. buckets[3], prefix .. buckets[4], counts)
  if not rows[i] then
    rows[i] = count(buckets, counts)
    if key then remember(key, string.format('%.0f', minute), date, rows[i]) end
  end
end
local answers = '[' .. table.concat(rows, ',') .. ']'
redis.call('HSET', KEYS[1], 'offset', next_offset, 'answers', answers)
redis.call('EXPIRE', KEYS[1], ARGV[6])
return {1, answers}
