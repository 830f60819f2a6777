-- Adds a job, unless one of that id is there.
-- KEYS: hash, head, steps, runs, controls, state, open, cursor, by status, by name, leases, ends,
--       totals, to be handed
-- ARGV: id, head, status, revision, token, wish, seq, lease until µs, tail, cursor, open,
--       state, spilled open, spilled cursor, milliseconds to keep it ('' for ever), entry of its end,
--       meter, counted items, when it is to be handed back in µs ('' for never), then fields of
--       totals, and as many texts of what is added to each
-- The first write is one that a full server refuses: then nothing is written at all.
local id = ARGV[1]
local left = redis.call('EXISTS', unpack(KEYS, 1, 8))
if left > 0 and redis.call('EXISTS', KEYS[1], KEYS[2]) == 2 then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local born = string.format('%.0f', now)
redis.call('SET', KEYS[2], ARGV[2])
if left > 0 then redis.call('DEL', KEYS[1], unpack(KEYS, 3, 8)) end
local set = {'b', born, 's', ARGV[3], 'v', ARGV[4],
  'l', ARGV[7] .. ' ' .. ARGV[8] .. ' ' .. ARGV[9], 'c', ARGV[10], 'o', ARGV[11]}
for field, at in ipairs({5, 6, 17, 18}) do
  if ARGV[at] ~= '' then
    set[#set + 1] = string.sub('twmn', field, field)
    set[#set + 1] = ARGV[at]
  end
end
redis.call('HSET', KEYS[1], unpack(set))
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
if ARGV[19] ~= '' then redis.call('ZADD', KEYS[14], ARGV[19], id) end
local last = 19 + (#ARGV - 19) / 2
for at = 20, last do redis.call('HINCRBYFLOAT', KEYS[13], ARGV[at], ARGV[at + last - 19]) end
return 1
