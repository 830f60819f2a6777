-- Reads a job as load.lua does, and begins its first run if nothing has happened to it yet.
-- KEYS: hash, head, steps, runs, controls, state, open, cursor, by status and by name while it is
--       pending, by status and by name while it runs, leases, totals, to be handed while pending
-- ARGV: 1 id, 2 what its head begins with if the name is right, 3 what the second line of a head of
--       this version begins with, 4 the third line while nothing has happened, 5 once the run has
--       begun, 6 token, 7 lease from now in µs, 8 the moment of progress, 9 upper bounds of the
--       buckets of queue_wait in seconds
-- Returns the end of the lease and the head's second line as one text if it has begun the run, what
-- load.lua returns if not; false when the job is gone. All that can change is compared with what it
-- was at first, so there are no steps, runs and controls then; the state alone is a key that a
-- submission may set.
local hash = redis.call('HMGET', KEYS[1], 'b', 's', 'v', 't', 'w', 'l', 'c', 'o', 'm', 'n', 'd', 'p')
local head, state = redis.call('GET', KEYS[2]), redis.call('GET', KEYS[6])
if not hash[1] or not head then
  return false
end
for at = 1, 12 do hash[at] = hash[at] or '' end
local fields = table.concat(hash, '\n')
local first, second, third = string.match(head, '^([^\n]*)\n([^\n]*)\n([^\n]*)$')
if third ~= ARGV[4] or state
  or string.sub(first, 1, #ARGV[2]) ~= ARGV[2] or string.sub(second, 1, #ARGV[3]) ~= ARGV[3]
  or fields ~= hash[1] .. '\npending\n0\n\n\n0 0 0 -\nnull\n-\n\n\n\n'
then
  local spilled = {false, false}
  if string.sub(hash[8], 1, 1) == '#' then spilled[1] = redis.call('GET', KEYS[7]) end
  if hash[7] == '#' then spilled[2] = redis.call('GET', KEYS[8]) end
  local found = {fields, head, state, spilled[1], spilled[2]}
  for at = 3, 5 do found[at + 3] = redis.call('LRANGE', KEYS[at], 0, -1) end
  return found
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local lease = string.format('%.0f', now + tonumber(ARGV[7]))
-- The first write is one that a full server refuses: then nothing is written at all.
redis.call('SET', KEYS[2], first .. '\n' .. second .. '\n' .. ARGV[5])
redis.call('HSET', KEYS[1], 'v', 1, 's', 'running', 't', ARGV[6],
  'l', '0 ' .. lease .. ' 0 ' .. ARGV[8])
local wait, bucket = (now - hash[1]) / 1000000, '+Inf'
for bound in string.gmatch(ARGV[9], '%S+') do
  if wait <= tonumber(bound) then
    bucket = bound
    break
  end
end
local counted = '["queue_wait_bucket",' .. first .. ',"","' .. bucket .. '"]'
local summed = '["queue_wait_sum",' .. first .. ',"",""]'
local before = redis.call('HMGET', KEYS[14], counted, summed)
redis.call('HSET', KEYS[14], counted, string.format('%.17g', (before[1] or 0) + 1),
  summed, string.format('%.17g', (before[2] or 0) + math.max(wait, 0)))
redis.call('ZREM', KEYS[9], ARGV[1])
redis.call('ZREM', KEYS[10], ARGV[1])
redis.call('ZREM', KEYS[15], ARGV[1])
redis.call('ZADD', KEYS[11], hash[1], ARGV[1])
redis.call('ZADD', KEYS[12], hash[1], ARGV[1])
redis.call('ZADD', KEYS[13], lease, ARGV[1])
return lease .. '\n' .. second
