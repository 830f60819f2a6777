-- Saves the positions of some runs of one shard and renews their leases, each behind its own fence.
-- KEYS: leases, then of each job its hash, and the keys of what it spills
-- ARGV: lease in µs, length of a hash's key before the id, the leap of seq that only a step's
--       completion makes, then of each job token, seq, items and progress, cursor, open step, which
--       texts follow for keys of their own (of 'o' the open step, 'x' the cursor, 'z' the state),
--       and the meter ('' where it has not changed)
-- Returns the end of the leases, then of each job '+' and its wish where it was saved, '-', its token
-- and its wish where it was refused, '!' and the error where it is damaged, false where it is gone.
-- The entry in the index of leases moves only when the lease comes into another third, the true end
-- is in the hash; the open step is written when it is another one. Most saves are made by
-- advance.lua, which does the same where nothing has changed but the position.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ttl, leap = tonumber(ARGV[1]), tonumber(ARGV[3])
local ends = string.format('%.0f', now + ttl)
local third = math.floor((now + ttl) * 3 / ttl)
local answer = {ends}
local key, at = 2, 4
while key <= #KEYS do
  local hash, spills = KEYS[key], ARGV[at + 5]
  local job = redis.pcall('HMGET', hash, 't', 'l', 'o', 'w')
  local found = false
  local saves = false
  if job.err then
    found = '!' .. job.err
  elseif job[2] then
    local seq, lease = string.match(job[2], '^(%d+) (%d+)')
    local ahead = job[1] == ARGV[at] and ARGV[at + 1] - seq or 0
    saves = ahead > 0 and ahead < leap
    if ahead > 0 and not saves then
      -- A completion of the run is missing, see complete_step.lua: the position is of a later step.
      redis.call('HSET', hash, 'l', seq .. ' 0 ' .. string.match(job[2], '^%d+ %d+ (.*)$'))
      redis.call('HDEL', hash, 't')
      redis.call('ZADD', KEYS[1], 0, string.sub(hash, ARGV[2] + 1))
      found = '- ' .. (job[4] or '')
    elseif saves then
      local saved = ARGV[at + 1] .. ' ' .. ends .. ' ' .. ARGV[at + 2]
      if job[3] == ARGV[at + 4] then
        redis.call('HSET', hash, 'l', saved, 'c', ARGV[at + 3])
      else
        redis.call('HSET', hash, 'l', saved, 'c', ARGV[at + 3], 'o', ARGV[at + 4])
      end
      if ARGV[at + 6] ~= '' then redis.call('HSET', hash, 'm', ARGV[at + 6]) end
      if math.floor(lease * 3 / ttl) ~= third then
        redis.call('ZADD', KEYS[1], ends, string.sub(hash, ARGV[2] + 1))
      end
      found = '+' .. (job[4] or '')
    else
      found = '-' .. (job[1] or '') .. ' ' .. (job[4] or '')
    end
  end
  key = key + 1
  at = at + 7
  for part = 1, #spills do
    if saves and not (string.sub(spills, part, part) == 'o' and job[3] == ARGV[at - 3]) then
      redis.call('SET', KEYS[key], ARGV[at])
    end
    key = key + 1
    at = at + 1
  end
  answer[#answer + 1] = found
end
return answer
