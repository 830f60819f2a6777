-- Checks entries of the index of leases against the hashes, where the true ends are, and mends them.
-- KEYS: leases, then the hashes      ARGV: the ids
-- Returns the true end and the id of each whose lease has ended.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local found = {}
for at, id in ipairs(ARGV) do
  local job = redis.call('HMGET', KEYS[at + 1], 's', 'l')
  if job[1] ~= 'running' then
    redis.call('ZREM', KEYS[1], id)
  else
    local ends = string.match(job[2], '^%S+ (%S+)')
    if tonumber(ends) > now then
      redis.call('ZADD', KEYS[1], ends, id)
    else
      found[#found + 1] = ends
      found[#found + 1] = id
    end
  end
end
return found
