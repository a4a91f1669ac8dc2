-- How every script begins: where the source stands says whether there is work to do. app/stores/base.py has the contract.
-- KEYS[1]  the source: a hash of its offset and of the answers given there
-- ARGV     prefix of every other key (same hash tag) | at, or 'ask' | next | most names | most keys
--          | seconds a source is kept, 0 for good | seconds a key is kept | seconds a minute's visits are kept
--          | most ids with a count of their own | the work, as JSON
-- Answers  {'counted', answers as JSON} when it is done, now or before, or {'moved', offset}.
-- A script runs alone, and checks all that may be refused before its first write, so that nothing is half done.
local COUNT_MAX = 9007199254740991
local prefix, asked, next_offset = ARGV[1], ARGV[2] == 'ask', ARGV[3]
local names_max, keys_max, key_kept = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
local ranked_max = tonumber(ARGV[9])
local total = prefix .. 'total:0'
local work = cjson.decode(ARGV[10])

local offset = redis.call('HGET', KEYS[1], 'offset') or '0'
if offset == next_offset then
  return {'counted', redis.call('HGET', KEYS[1], 'answers')}
elseif not asked and tonumber(offset) ~= tonumber(ARGV[2]) then
  return {'moved', offset}
end

local function whole(number)
  return string.format('%.0f', number + 0) -- or else there would be a -0, which is none
end

local function number(key, field)
  return tonumber(redis.call('HGET', key, field) or 0)
end

local function names_left() -- '' is no name
  return names_max - redis.call('HLEN', total) + redis.call('HEXISTS', total, '')
end

-- Say that there is something in a bucket of anything but events, which else nobody would find.
local function list(bucket)
  local step, start, of = string.match(bucket, '^(%a+):(%-?%d+):(.*)$')
  redis.call('SADD', prefix .. 'ofs:' .. step .. ':' .. start, of)
  if step ~= 'total' then redis.call('ZADD', prefix .. 'starts:' .. step, start, start) end
  if step == 'minute' then
    for _, key in ipairs({bucket, 'seen:' .. bucket, 'ofs:' .. step .. ':' .. start}) do
      redis.call('EXPIRE', prefix .. key, ARGV[8])
    end
  end
end

-- Count a user or a session; who comes after the first so many is only known to have come.
local function mark(bucket, id, by)
  local ranked = prefix .. bucket
  redis.call('PFADD', prefix .. 'seen:' .. bucket, id)
  local size = redis.call('HLEN', ranked)
  if by > 0 and (size < ranked_max or redis.call('HEXISTS', ranked, id) == 1) then
    redis.call('HINCRBY', ranked, id, by)
  end
  if size == 0 then list(bucket) end
end

-- As HLEN says it, '' included; a bucket that is new is listed, so that it can be pruned.
local function add_to_all(bucket, sum)
  local all = redis.call('HINCRBY', prefix .. bucket, '', whole(sum))
  local step, start = string.match(bucket, '^(%a+):(%-?%d+)$')
  if all == sum and step and step ~= 'total' then redis.call('ZADD', prefix .. 'starts:' .. step, start, start) end
end

-- The generations of these days, of buckets such as day:0, as a map in JSON; 0 is left out.
local function generations(days)
  local known = {}
  for day in pairs(days) do
    local generation = redis.call('HGET', prefix .. day .. ':generation', '')
    if generation then known[#known + 1] = '"' .. string.sub(day, 5) .. '":' .. generation end
  end
  return '{' .. table.concat(known, ',') .. '}'
end

local function stand(answers)
  redis.call('HSET', KEYS[1], 'offset', next_offset, 'answers', answers)
  if ARGV[6] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[6]) end
  return {'counted', answers}
end

