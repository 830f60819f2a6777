-- Adds a job, unless one of that id is there.
-- KEYS: hash, head, steps, runs, controls, state, open, cursor, by status, by name, leases, ends,
--       totals, to be handed
-- ARGV: id, head, status, revision, token, wish, seq, lease until µs, tail, cursor, open,
--       state, spilled open, spilled cursor, milliseconds to keep it ('' for ever), entry of its end,
--       meter, counted items, when it is to be handed back in µs ('' for never), then fields of
--       totals and what is added to each
-- The first write is one that a full server refuses: then nothing is written at all.
local id = ARGV[1]
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 2 then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local born = string.format('%.0f', now)
redis.call('SET', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8])
redis.call('HSET', KEYS[1], 'b', born, 's', ARGV[3], 'v', ARGV[4],
  'l', ARGV[7] .. ' ' .. ARGV[8] .. ' ' .. ARGV[9], 'c', ARGV[10], 'o', ARGV[11])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 't', ARGV[5]) end
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'w', ARGV[6]) end
for at = 12, 14 do
  if ARGV[at] ~= '' then redis.call('SET', KEYS[at - 6], ARGV[at]) end
end
redis.call('ZADD', KEYS[9], born, id)
redis.call('ZADD', KEYS[10], born, id)
if ARGV[3] == 'running' then
  redis.call('ZADD', KEYS[11], ARGV[8], id)
end
if ARGV[15] ~= '' then
  local ends = string.format('%.0f', math.floor(now / 1000) + tonumber(ARGV[15]))
  redis.call('ZADD', KEYS[12], ends, born .. ' ' .. ARGV[16])
  for at = 1, 8 do redis.call('PEXPIREAT', KEYS[at], ends) end
end
if ARGV[17] ~= '' then redis.call('HSET', KEYS[1], 'm', ARGV[17]) end
if ARGV[18] ~= '' then redis.call('HSET', KEYS[1], 'n', ARGV[18]) end
if ARGV[19] ~= '' then redis.call('ZADD', KEYS[14], ARGV[19], id) end
for at = 20, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[13], ARGV[at], ARGV[at + 1]) end
return 1
