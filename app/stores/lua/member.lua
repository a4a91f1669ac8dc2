-- Return the count of one member in several buckets at one moment: no commit can run in between.
-- KEYS     the buckets
-- ARGV[1]  the member
-- Reply    a count for each bucket, or nil if the member is not in it
local counts = {}
for i, key in ipairs(KEYS) do counts[i] = redis.call('HGET', key, ARGV[1]) end
return counts
