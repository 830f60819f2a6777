-- Reads a job as it is at one moment; false when it is gone.
-- KEYS: hash, head, steps, runs, controls, state, open, cursor
-- ARGV: 'all', or 'head' to leave out steps, runs and controls
local hash = redis.call('HMGET', KEYS[1], 'b', 's', 'v', 't', 'w', 'l', 'c', 'o', 'm', 'n', 'd', 'p')
local head = redis.call('GET', KEYS[2])
if not hash[1] or not head then
  return false
end
local spilled = {false, false}
if string.sub(hash[8], 1, 1) == '#' then spilled[1] = redis.call('GET', KEYS[7]) end
if hash[7] == '#' then spilled[2] = redis.call('GET', KEYS[8]) end
for at = 1, 12 do hash[at] = hash[at] or '' end -- one text: each one costs who reads the reply
local found = {table.concat(hash, '\n'), head, redis.call('GET', KEYS[6]), spilled[1], spilled[2]}
if ARGV[1] == 'all' then
  for at = 3, 5 do found[at + 3] = redis.call('LRANGE', KEYS[at], 0, -1) end
end
return found
