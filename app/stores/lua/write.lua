-- Do what was decided, other than to count hits. It follows stand.lua.
-- The work   the day whose generation is wanted, such as day:0, how many changes of it there were when this one was
--            worked out, or false, and writes, each [how, bucket, whether it is one of events, [member, count, ...]
--            or a sketch in hexadecimal]
local does = {}

function does.add(bucket, of_events, counts)
  local sum = 0
  for i = 1, #counts, 2 do
    redis.call('HINCRBY', prefix .. bucket, counts[i], whole(counts[i + 1]))
    sum = sum + counts[i + 1]
  end
  if of_events and #counts > 0 then add_to_all(bucket, sum) end
end

function does.mark(bucket, _, ids)
  for i = 1, #ids, 2 do mark(bucket, ids[i], ids[i + 1]) end
end

function does.merge(bucket, _, sketch)
  local seen = prefix .. 'seen:' .. bucket
  local bytes = string.gsub(sketch, '..', function(hex) return string.char(tonumber(hex, 16)) end)
  redis.call('SET', seen .. ':other', bytes)
  redis.call('PFMERGE', seen, seen .. ':other')
  redis.call('DEL', seen .. ':other')
end

function does.take(bucket, of_events, members)
  for i = 1, #members, 2 do
    local count = number(prefix .. bucket, members[i])
    redis.call('HDEL', prefix .. bucket, members[i])
    if of_events then redis.call('HINCRBY', prefix .. bucket, '', whole(-count)) end
  end
end

function does.drop(bucket)
  local plain, of = string.match(bucket, '^(%a+:%-?%d+):(.*)$')
  redis.call('UNLINK', prefix .. bucket, prefix .. 'seen:' .. bucket)
  redis.call('SREM', prefix .. 'ofs:' .. plain, of)
end

local day, after, writes = unpack(work)
if after and redis.call('HLEN', prefix .. day .. ':log') ~= after then return {'overtaken', ''} end
for _, write in ipairs(writes) do
  local how, bucket, of_events, members = unpack(write)
  does[how](bucket, of_events, members)
  if (how == 'add' or how == 'merge') and #members > 0 and string.find(bucket, ':.*:') then list(bucket) end
end
return stand('[' .. generations({[day] = true}) .. ']')
