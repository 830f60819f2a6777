-- Notes what was sent of a job's spans, and gives the claim back.
-- KEYS: hash, spans     ARGV: id, end of the claim in µs, revision, steps, runs, root
local job = redis.call('HMGET', KEYS[1], 'v', 'd', 'p')
if not job[1] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
local mine = job[2] == ARGV[2]
local sent = {}
for number in string.gmatch(job[3] or '0 0 0', '%d+') do sent[#sent + 1] = tonumber(number) end
-- A rewind ends the claim, and drops steps, not runs: only the steps that were counted may be others.
for at = mine and 1 or 2, 3 do sent[at] = math.max(sent[at], tonumber(ARGV[3 + at])) end
redis.call('HSET', KEYS[1], 'p', table.concat(sent, ' '))
if not mine then
  return 1
end
if job[1] == ARGV[3] then
  redis.call('HDEL', KEYS[1], 'd')
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000000 + time[2])
  redis.call('HSET', KEYS[1], 'd', now)
  redis.call('ZADD', KEYS[2], now, ARGV[1])
end
return 1
