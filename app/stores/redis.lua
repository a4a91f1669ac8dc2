-- Count a batch, exactly once: app/stores/base.py has the contract.
-- KEYS[1]  the source: a hash of its offset and of the answers given there
-- ARGV     prefix of every other key (same hash tag) | at, or 'ask' | next | most names | most keys
--          | seconds a source is kept | seconds a key is kept | as JSON: moments, each [[minute, hour, day and total
--          bucket], date, minute], and postings, each [which moment, [event, by, ...], [key, request, owner] or
--          false, whether capped, why another tag has refused it, or false]
-- Answers  {'counted', rows as JSON} when the batch is counted, now or before, or {'moved', offset}.
--          Asked, it counts nothing and says {'asked', rows}: why a posting would be refused or what its key
--          has as an answer, else null. A claim, which is a key with an owner and no counts, is remembered then.
-- A script runs alone, and checks each posting before its first write, so that nothing is half done.
local COUNT_MAX = 9007199254740991
local prefix, asked, next_offset = ARGV[1], ARGV[2] == 'ask', ARGV[3]
local names_max, keys_max, key_kept = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
local live_keys = prefix .. 'keys'

local offset = redis.call('HGET', KEYS[1], 'offset') or '0'
if offset == next_offset then
  return {'counted', redis.call('HGET', KEYS[1], 'answers')}
elseif not asked and tonumber(offset) ~= tonumber(ARGV[2]) then
  return {'moved', offset}
end

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

local function refusal(day, total, counts, capped)
  local names = nil -- asked for once, at the first new name
  for i = 1, #counts, 2 do
    local known = redis.call('HGET', total, counts[i])
    if not known and capped then
      names = (names or redis.call('HLEN', total) - redis.call('HEXISTS', total, '')) + 1 -- '' is no name
      if names > names_max then return '["full"]' end
    end
    local count = redis.call('HGET', day, counts[i]) or 0
    if math.max(tonumber(count), tonumber(known or 0)) + counts[i + 1] > COUNT_MAX then return '["overflow"]' end
  end
end

local sums = {} -- of all events, by bucket

local function count(buckets, counts)
  local row = {}
  for i = 1, #counts, 2 do
    for b, bucket in ipairs(buckets) do
      local value = redis.call('HINCRBY', prefix .. bucket, counts[i], counts[i + 1])
      sums[bucket] = (sums[bucket] or 0) + counts[i + 1]
      if b > 2 then row[i + b - 3] = string.format('%.0f', value) end
    end
  end
  return '[' .. table.concat(row, ',') .. ']'
end

local function count_all()
  for bucket, sum in pairs(sums) do
    local all = redis.call('HINCRBY', prefix .. bucket, '', string.format('%.0f', sum))
    local step, start = string.match(bucket, '^(%a+):(%-?%d+)$')
    if all == sum and step ~= 'total' then -- it is new; what can be pruned is listed, by its step
      redis.call('ZADD', prefix .. 'starts:' .. step, start, start)
    end
  end
end

local rows = {}
local moments, postings = unpack(cjson.decode(ARGV[8]))
for i, posting in ipairs(postings) do
  local moment, counts, key, capped, refused = unpack(posting)
  local buckets, date, minute = unpack(moments[moment + 1])
  local claim = key and key[3] ~= '' and #counts == 0
  if refused then
    rows[i] = '["' .. refused .. '"]'
  else
    rows[i] = key and recalled(key, minute, capped)
      or refusal(prefix .. buckets[3], prefix .. buckets[4], counts, capped)
  end
  if not rows[i] and asked and not claim then
    rows[i] = 'null'
  elseif not rows[i] then
    rows[i] = count(buckets, counts)
    if key then remember(key, string.format('%.0f', minute), date, rows[i]) end
  end
end
count_all()
local answers = '[' .. table.concat(rows, ',') .. ']'
if asked then return {'asked', answers} end
redis.call('HSET', KEYS[1], 'offset', next_offset, 'answers', answers)
redis.call('EXPIRE', KEYS[1], ARGV[6])
return {'counted', answers}
