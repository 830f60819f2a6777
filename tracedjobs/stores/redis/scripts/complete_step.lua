-- Records that a step is done, with the state after it; no step is open then.
-- KEYS: hash, steps, state, leases, totals
-- ARGV: id, token, position, step, seq, state, then fields of totals and what is added to each
-- Where steps before it are missing, the server has lost its newest writes: the run is fenced off,
-- and its lease ended, so that the job is resumed from what is left.
local job = redis.call('HMGET', KEYS[1], 't', 'l', 's')
if job[1] ~= ARGV[2] then
  return 0
end
local _, lease, tail = string.match(job[2], '^(%S+) (%S+) (.*)$')
local position = tonumber(ARGV[3])
local done = redis.call('LLEN', KEYS[2])
if position > done then
  redis.call('HSET', KEYS[1], 'l', string.match(job[2], '^%S+') .. ' 0 ' .. tail)
  redis.call('HDEL', KEYS[1], 't')
  if job[3] == 'running' then redis.call('ZADD', KEYS[4], 0, ARGV[1]) end
  return 0
end
if position == done then
  redis.call('RPUSH', KEYS[2], ARGV[4])
  for at = 7, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[5], ARGV[at], ARGV[at + 1]) end
else
  redis.call('LSET', KEYS[2], position, ARGV[4])
end
if tonumber(string.match(job[2], '^%S+')) >= tonumber(ARGV[5]) then
  return 1 -- it comes late, after its own repetition: the run has gone on since
end
if ARGV[6] ~= '' then redis.call('SET', KEYS[3], ARGV[6]) end
local progressed = string.match(tail, '%S+$')
redis.call('HSET', KEYS[1], 'l', ARGV[5] .. ' ' .. lease .. ' 0 ' .. progressed,
  'c', 'null', 'o', '-')
redis.call('HDEL', KEYS[1], 'm', 'n')
return 1
