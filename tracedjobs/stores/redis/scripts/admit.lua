-- Whether a step's name is among the first of its job's that were asked for; from then on it is.
-- KEYS: the names      ARGV: the name, how many there may be
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 1 then return 1 end
if redis.call('SCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
return redis.call('SADD', KEYS[1], ARGV[1])
