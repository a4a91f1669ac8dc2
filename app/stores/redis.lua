-- Count a batch, exactly once: app/stores/base.py has the contract.
-- KEYS[1]  the source: a hash of its offset and of the answers given there
-- ARGV     prefix of every other key (same hash tag) | at | next | most names, or -1 | seconds a source is kept
--          | postings as JSON, each [[minute, hour, day and total bucket], [event, by, event, by, ...]]
-- Answers  {1, rows as JSON} when the batch is counted, now or before; {0, offset} when the source stands elsewhere.
-- A script runs alone and has no half way: all of it happened, or none.
local COUNT_MAX = 9007199254740991
local prefix, at, next_offset, names_max = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

local offset = redis.call('HGET', KEYS[1], 'offset') or '0'
if offset == next_offset then
  return {1, redis.call('HGET', KEYS[1], 'answers')}
elseif tonumber(offset) ~= at then
  return {0, offset}
end

local function refusal(day, total, counts)
  local names = nil -- asked for once, at the first new name
  for i = 1, #counts, 2 do
    local known = redis.call('HGET', total, counts[i])
    if not known and names_max >= 0 then
      names = (names or math.max(redis.call('HLEN', total) - 1, 0)) + 1 -- '' is no name
      if names > names_max then return {'full', counts[i]} end
    end
    local count = redis.call('HGET', day, counts[i]) or 0
    if math.max(tonumber(count), tonumber(known or 0)) + counts[i + 1] > COUNT_MAX then return {'overflow', counts[i]} end
  end
end

local function count(buckets, counts)
  local day, total = prefix .. buckets[3], prefix .. buckets[4]
  local refused = refusal(day, total, counts)
  if refused then return cjson.encode(refused) end
  local sum, row = 0, {}
  for i = 1, #counts, 2 do
    sum = sum + counts[i + 1]
    for _, bucket in ipairs(buckets) do
      redis.call('HINCRBY', prefix .. bucket, counts[i], counts[i + 1])
    end
    row[i], row[i + 1] = redis.call('HGET', day, counts[i]), redis.call('HGET', total, counts[i])
  end
  for _, bucket in ipairs(buckets) do
    redis.call('HINCRBY', prefix .. bucket, '', string.format('%.0f', sum))
  end
  return '[' .. table.concat(row, ',') .. ']'
end

local rows = {}
for i, posting in ipairs(cjson.decode(ARGV[6])) do
  rows[i] = count(posting[1], posting[2])
end
local answers = '[' .. table.concat(rows, ',') .. ']'
redis.call('HSET', KEYS[1], 'offset', next_offset, 'answers', answers)
redis.call('EXPIRE', KEYS[1], ARGV[5])
return {1, answers}
