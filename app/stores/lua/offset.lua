-- The beginning of count.lua and write.lua: compare the source's offset and save it with the results.
-- CounterStore.apply in app/stores/base.py documents the rule, app/stores/redis_keys.py lists the keys.
--
-- KEYS[1]  the source's hash; the other KEYS are only declared, so that Redis Cluster can check them
-- ARGV[1]  prefix of every other key, with the same hash tag as KEYS[1]
-- ARGV[2]  expected offset, or 'prepare' (count.lua only)
-- ARGV[3]  new offset
-- ARGV[4]  largest number of event names
-- ARGV[5]  largest number of live idempotency keys
-- ARGV[6]  seconds to keep the source, 0 for ever
-- ARGV[7]  seconds for which an idempotency key is recognised
-- ARGV[8]  seconds to keep the visitors of a minute
-- ARGV[9]  largest number of visitors with a count of their own in a bucket
-- ARGV[10] the work, as JSON; each script documents its form
-- ARGV[11] a note to save with the offset, or ''
--
-- Reply    {'applied', results}  now or by an earlier call; results as JSON: [generations by day, row of a group, ...]
--          {'mismatch', offset}  the source is at another offset; nothing was written
--
-- Redis does not undo the writes of a script that fails, so everything that may be rejected is checked before the first
-- write.
local COUNT_MAX = 9007199254740991
local FIELDS_PER_CALL = 1000 -- unpack puts its values on Lua's stack, which has room for some thousands
local prefix, preparing, new_offset = ARGV[1], ARGV[2] == 'prepare', ARGV[3]
local names_max, keys_max, key_ttl = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
local ranked_max = tonumber(ARGV[9])
local total_key = prefix .. 'total:0'
local work = cjson.decode(ARGV[10])

local offset = redis.call('HGET', KEYS[1], 'offset') or '0'
if offset == new_offset then
  return {'applied', redis.call('HGET', KEYS[1], 'answers')}
elseif not preparing and (tonumber(offset) ~= tonumber(ARGV[2]) or tonumber(new_offset) < tonumber(offset)) then
  return {'mismatch', offset}
end

-- Return a number as the text of an integer. The sum prevents '-0', which Redis rejects.
local function to_integer(number)
  return string.format('%.0f', number + 0)
end

local function get_count(key, member)
  return tonumber(redis.call('HGET', key, member) or 0)
end

-- Return how many new event names are allowed. The empty name holds the sum of all events.
local function count_free_names()
  return names_max - redis.call('HLEN', total_key) + redis.call('HEXISTS', total_key, '')
end

-- Register a bucket that has a dimension, so that list_buckets and prune find it.
local function register_bucket(bucket)
  local step, start, dimension = string.match(bucket, '^(%a+):(%-?%d+):(.*)$')
  redis.call('SADD', prefix .. 'ofs:' .. step .. ':' .. start, dimension)
  if step ~= 'total' then redis.call('ZADD', prefix .. 'starts:' .. step, start, start) end
  if step == 'minute' then
    for _, key in ipairs({bucket, 'seen:' .. bucket, 'ofs:' .. step .. ':' .. start}) do
      redis.call('EXPIRE', prefix .. key, ARGV[8])
    end
  end
end

-- Count users or sessions: [visitor, amount, ...]. After the first `ranked_max`, a new one only adds to the HyperLogLog.
local function count_visitors(bucket, visitors)
  local key, ids = prefix .. bucket, {}
  for i = 1, #visitors, 2 do ids[#ids + 1] = visitors[i] end
  for first = 1, #ids, FIELDS_PER_CALL do
    redis.call('PFADD', prefix .. 'seen:' .. bucket, unpack(ids, first, math.min(first + FIELDS_PER_CALL - 1, #ids)))
  end
  local size = redis.call('HLEN', key)
  local is_new = size == 0
  for i = 1, #visitors, 2 do
    local visitor, by = visitors[i], visitors[i + 1]
    if by > 0 and (size < ranked_max or redis.call('HEXISTS', key, visitor) == 1) then
      if redis.call('HINCRBY', key, visitor, by) == by then size = size + 1 end
    end
  end
  if is_new then register_bucket(bucket) end
end

-- Add to the sum of all events of a bucket, under the empty name. A new bucket is registered, so that prune finds it.
local function add_to_sum(bucket, amount)
  local sum = redis.call('HINCRBY', prefix .. bucket, '', to_integer(amount))
  local step, start = string.match(bucket, '^(%a+):(%-?%d+)$')
  if sum == amount and step and step ~= 'total' then redis.call('ZADD', prefix .. 'starts:' .. step, start, start) end
end

-- Return the generations of these day buckets as a JSON object by UTC second; a day with generation 0 is left out.
local function encode_generations(days)
  local generations = {}
  for day in pairs(days) do
    local generation = redis.call('HGET', prefix .. day .. ':generation', '')
    if generation then generations[#generations + 1] = '"' .. string.sub(day, 5) .. '":' .. generation end
  end
  return '{' .. table.concat(generations, ',') .. '}'
end

local function save_offset(results)
  redis.call('HSET', KEYS[1], 'offset', new_offset, 'answers', results)
  if ARGV[11] ~= '' then redis.call('HSET', KEYS[1], 'note', ARGV[11]) end
  if ARGV[6] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[6]) end
  return {'applied', results}
end

