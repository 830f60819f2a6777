-- The totals of a shard, and the heads and positions of its running jobs, as of one moment.
-- KEYS: totals, then of each job its hash, head, open step and cursor
-- Returns the server's time, the totals, and of each job what `load` does; false if it does not run.
local time = redis.call('TIME')
local found = {string.format('%.0f', time[1] * 1000000 + time[2]), redis.call('HGETALL', KEYS[1])}
for at = 2, #KEYS, 4 do
  local hash = redis.call('HMGET', KEYS[at], 'b', 's', 'v', 't', 'w', 'l', 'c', 'o', 'm', 'n', 'd', 'p')
  local head = redis.call('GET', KEYS[at + 1])
  local job = false
  if hash[2] == 'running' and head then
    for field = 1, 12 do hash[field] = hash[field] or '' end
    job = {table.concat(hash, '\n'), head, false, false, false}
    if string.sub(hash[8], 1, 1) == '#' then job[4] = redis.call('GET', KEYS[at + 2]) end
    if hash[7] == '#' then job[5] = redis.call('GET', KEYS[at + 3]) end
  end
  found[#found + 1] = job
end
return found
