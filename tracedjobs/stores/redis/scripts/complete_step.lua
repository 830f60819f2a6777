-- Records that a step is done, with the state after it, and renews the lease; no step is open then.
-- KEYS: hash, steps, state, leases, totals
-- ARGV: id, token, position, step, seq, state, lease from now in µs ('' to leave it), then fields of
--       totals, and as many texts of what is added to each
-- Where steps before it are missing, the server has lost its newest writes: the run is fenced off,
-- and its lease ended, so that the job is resumed from what is left.
local job = redis.call('HMGET', KEYS[1], 't', 'l', 's', 'c', 'o', 'm', 'n')
if job[1] ~= ARGV[2] then
  return 0
end
local seq, lease, tail = string.match(job[2], '^(%S+) (%S+) (.*)$')
local position = tonumber(ARGV[3])
local done = redis.call('LLEN', KEYS[2])
if position > done then
  redis.call('HSET', KEYS[1], 'l', seq .. ' 0 ' .. tail)
  redis.call('HDEL', KEYS[1], 't')
  if job[3] == 'running' then redis.call('ZADD', KEYS[4], 0, ARGV[1]) end
  return 0
end
if position == done then
  redis.call('RPUSH', KEYS[2], ARGV[4])
  local last = 7 + (#ARGV - 7) / 2
  if last > 7 then -- as in change.lua
    local before, totals = redis.call('HMGET', KEYS[5], unpack(ARGV, 8, last)), {}
    for at, amount in ipairs(before) do
      totals[at * 2 - 1] = ARGV[7 + at]
      totals[at * 2] = (amount or 0) + ARGV[last + at]
    end
    redis.call('HSET', KEYS[5], unpack(totals))
  end
else
  redis.call('LSET', KEYS[2], position, ARGV[4])
end
if tonumber(seq) >= tonumber(ARGV[5]) then
  return 1 -- it comes late, after its own repetition: the run has gone on since
end
if ARGV[6] ~= '' then redis.call('SET', KEYS[3], ARGV[6]) end
if ARGV[7] ~= '' then
  local time, ttl = redis.call('TIME'), tonumber(ARGV[7])
  local ends = time[1] * 1000000 + time[2] + ttl
  local third = math.floor(lease * 3 / ttl)
  lease = string.format('%.0f', ends)
  if job[3] == 'running' and third ~= math.floor(ends * 3 / ttl) then -- as in save.lua
    redis.call('ZADD', KEYS[4], lease, ARGV[1])
  end
end
local progressed = string.match(tail, '%S+$')
local saved = ARGV[5] .. ' ' .. lease .. ' 0 ' .. progressed
if job[4] == 'null' and job[5] == '-' then
  redis.call('HSET', KEYS[1], 'l', saved) -- nothing of the step was saved, as of most that are short
else
  redis.call('HSET', KEYS[1], 'l', saved, 'c', 'null', 'o', '-')
end
if job[6] or job[7] then redis.call('HDEL', KEYS[1], 'm', 'n') end
return 1
