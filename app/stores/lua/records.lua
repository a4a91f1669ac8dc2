-- Compare records and set them, all or none.
-- KEYS     the hashes of the collections
-- ARGV[1]  index of the collection to drop, or 0
-- ARGV[2…] for each change: index of its collection, id, text before, text after; '' if there is none
-- Reply    1, or 0 if a record is not as expected; then nothing was written
for i = 2, #ARGV, 4 do
  if (redis.call('HGET', KEYS[tonumber(ARGV[i])], ARGV[i + 1]) or '') ~= ARGV[i + 2] then return 0 end
end
-- Redis rejects only the first write of a script if its memory is full, so the writes that need memory come first.
for i = 2, #ARGV, 4 do
  if ARGV[i + 3] ~= '' then redis.call('HSET', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 3]) end
end
for i = 2, #ARGV, 4 do
  if ARGV[i + 3] == '' then redis.call('HDEL', KEYS[tonumber(ARGV[i])], ARGV[i + 1]) end
end
if ARGV[1] ~= '0' then redis.call('UNLINK', KEYS[tonumber(ARGV[1])]) end
return 1
