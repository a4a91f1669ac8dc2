-- Return the union of HyperLogLogs as hexadecimal text, because redis-py decodes replies as UTF-8.
-- KEYS[1]  key for the union, which is deleted again
-- KEYS[2…] the HyperLogLogs; one that does not exist is empty
-- Reply    the bytes of the union, as Redis stores them
redis.call('PFMERGE', KEYS[1], unpack(KEYS, 2))
local union = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return (string.gsub(union, '.', function(byte) return string.format('%02x', string.byte(byte)) end))
