-- Do the bucket writes of an administrative change. offset.lua is prepended: it documents KEYS and ARGV, and replies to
-- a retry and to a wrong offset.
--
-- Work     [day bucket, expected number of corrections of that day or false, deadline (UTC second) or false, writes,
--          unfinished or false]
--   write  [operation of app/domain/counting.py, bucket, whether its members are events, content]
--   content  [member, count, ...]; for 'merge' a HyperLogLog of Redis, as hexadecimal text
--   unfinished  [id, change] to keep until all shards have the change
-- Reply    {'applied', '[generations]'} or {'mismatch', offset}, see offset.lua
--          {'conflict', ''} if the day has another number of corrections, or if too many changes are unfinished; nothing
--          was written
--          {'expired', ''} if the deadline is over, because a change whose request has failed must not be applied later;
--          nothing was written
local UNFINISHED_MAX = 16 -- each may be as large as a megabyte
local handlers = {}

function handlers.add(bucket, has_events, counts)
  local sum = 0
  for i = 1, #counts, 2 do
    redis.call('HINCRBY', prefix .. bucket, counts[i], to_integer(counts[i + 1]))
    sum = sum + counts[i + 1]
  end
  if has_events and #counts > 0 then add_to_sum(bucket, sum) end
end

function handlers.mark(bucket, _, counts)
  if #counts > 0 then count_visitors(bucket, counts) end
end

function handlers.merge(bucket, _, sketch)
  local seen, scratch = prefix .. 'seen:' .. bucket, prefix .. 'sketch'
  local bytes = string.gsub(sketch, '..', function(hex) return string.char(tonumber(hex, 16)) end)
  redis.call('SET', scratch, bytes)
  redis.call('PFMERGE', seen, scratch)
  redis.call('DEL', scratch)
end

function handlers.take(bucket, has_events, counts)
  local sum = 0
  for i = 1, #counts, 2 do
    local count = get_count(prefix .. bucket, counts[i])
    -- After a data loss, a count may be smaller than when the change was planned. One of a correction may be negative.
    local taken = math.max(math.min(count, 0), math.min(counts[i + 1], math.max(count, 0)))
    if taken == count then
      redis.call('HDEL', prefix .. bucket, counts[i])
    else
      redis.call('HINCRBY', prefix .. bucket, counts[i], to_integer(-taken))
    end
    sum = sum + taken
  end
  if has_events and sum ~= 0 then redis.call('HINCRBY', prefix .. bucket, '', to_integer(-sum)) end
end

function handlers.drop(bucket)
  local plain, dimension = string.match(bucket, '^(%a+:%-?%d+):(.*)$')
  redis.call('UNLINK', prefix .. bucket, prefix .. 'seen:' .. bucket)
  redis.call('SREM', prefix .. 'ofs:' .. plain, dimension)
end

local day, expected_corrections, deadline, writes, unfinished = unpack(work)
local unfinished_key = prefix .. 'unfinished'
local now = redis.pcall('TIME') -- an access list may forbid it, which /health reports
if deadline and not now.err and now[1] + now[2] / 1000000 > deadline then
  return {'expired', ''}
end
if expected_corrections and redis.call('HLEN', prefix .. day .. ':log') ~= expected_corrections then
  return {'conflict', ''}
end
if unfinished and redis.call('HLEN', unfinished_key) >= UNFINISHED_MAX then
  return {'conflict', ''}
end
for _, write in ipairs(writes) do
  local operation, bucket, has_events, content = unpack(write)
  handlers[operation](bucket, has_events, content)
  if (operation == 'add' or operation == 'merge') and #content > 0 and string.find(bucket, ':.*:') then
    register_bucket(bucket)
  end
end
if unfinished then
  redis.call('HSET', unfinished_key, unfinished[1], unfinished[2])
  -- It must expire before the source's offset, without which a shard would apply the change a second time.
  redis.call('EXPIRE', unfinished_key, math.floor(ARGV[6] / 2))
end
return save_offset('[' .. encode_generations({[day] = true}) .. ']')
