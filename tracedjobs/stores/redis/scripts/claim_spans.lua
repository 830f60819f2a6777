-- Claims the sending of the spans that a job owes; when the claim ends in µs, false when it is taken.
-- KEYS: hash, spans     ARGV: id, how long in µs, the longest there is
-- A claim that is far in the future is from before the clock was set back, and is none.
local job = redis.call('HMGET', KEYS[1], 'v', 'd')
if not job[1] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local due = tonumber(job[2] or '0')
if due > now and due <= now + tonumber(ARGV[3]) then
  return false
end
local ends = string.format('%.0f', now + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'd', ends)
redis.call('ZADD', KEYS[2], ends, ARGV[1])
return ends
