-- Delete buckets with a dimension and then, if no other is left, the bucket that has their step and start.
--
-- KEYS[1]  starts of all buckets of the step
-- KEYS[2]  dimensions of that step and start
-- KEYS[3]  the bucket without a dimension
-- KEYS[4…] every key of the buckets with a dimension
-- ARGV[1]  the start
-- ARGV[2…] the dimensions
--
-- A late hit comes before this or after it. If it comes after it, its buckets are listed again.
if #ARGV > 1 then
  redis.call('UNLINK', unpack(KEYS, 4))
  redis.call('SREM', KEYS[2], unpack(ARGV, 2))
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('UNLINK', KEYS[3])
  redis.call('ZREM', KEYS[1], ARGV[1])
end
