-- Changes a job, if it still is as it was read: its revision, status and token, and its lease where
-- that was asked for. What does not change is passed as it was read, or as '': what saves write too
-- is never passed as it was read, for it may have been read long ago.
-- KEYS: hash, head, steps, runs, controls, state, open, cursor, by status before, by name before,
--       by status, by name, leases, ends, totals, spans, to be handed before, to be handed
-- ARGV: 1 id, 2 revision, 3 status, 4 token, 5 lease until µs to hold ('' for any),
--       6 revision, 7 status, 8 token, 9 wish, 10 head: all of it, or its third line where the
--       first two, which are what was submitted and may be long, stay as they are,
--       11 lease from now in µs, 12 lease until µs, 13 seq, 14 items, 15 progressed,
--       16 whether a position comes, 17 cursor, 18 open, 19 spilled cursor, 20 spilled open,
--       21 state ('-' for none), 22 milliseconds to keep it ('' for ever, 'same'),
--       23 entry of its end before, 24 entry of its end, 25 a run for the list of runs, 26 a control,
--       27 number of steps read ('' when none are dropped), 28 meter, 29 counted items ('=' where
--       they stay), 30 whether it owes spans from now on, 31 the leap of seq that only a step's
--       completion makes ('' where it is not looked at), 32 when it is to be handed back to its
--       queue in µs ('' for never), 33 how many fields of totals follow, then these, as many
--       texts of what is added to each, and the steps left
-- Returns how many steps the job has; -1 where it is not as it was read.
local hash = KEYS[1]
local job = redis.call('HMGET', hash, 'v', 's', 't', 'l', 'b', 'w', 'm', 'n')
if job[1] ~= ARGV[2] or job[2] ~= ARGV[3] or (job[3] or '') ~= ARGV[4] then
  return -1
end
local seq, lease, items, progressed = string.match(job[4], '^(%S+) (%S+) (%S+) (%S+)$')
if ARGV[5] ~= '' and lease ~= ARGV[5] then
  return -1
end
if ARGV[27] ~= '' and redis.call('LLEN', KEYS[3]) ~= tonumber(ARGV[27]) then
  return -1
end
if ARGV[31] ~= '' and ARGV[13] - seq >= tonumber(ARGV[31]) then
  -- The run that ends has completed steps that the server has lost, see complete_step.lua.
  redis.call('HSET', hash, 'l', seq .. ' 0 ' .. items .. ' ' .. progressed)
  redis.call('HDEL', hash, 't')
  if job[2] == 'running' then redis.call('ZADD', KEYS[13], 0, ARGV[1]) end
  return -1
end
local head = ARGV[10]
if string.sub(head, 1, 1) == '[' then
  local submitted = string.match(redis.call('GET', KEYS[2]) or '', '^.*\n')
  if not submitted then
    return -1
  end
  head = submitted .. head
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if ARGV[12] ~= '' then lease = ARGV[12] end
if ARGV[11] ~= '' then lease = string.format('%.0f', now + tonumber(ARGV[11])) end
if ARGV[13] ~= '' then seq = ARGV[13] end
if ARGV[14] ~= '' then items = ARGV[14] end
if ARGV[15] ~= '' then progressed = ARGV[15] end

local ends = tonumber(ARGV[22]) and string.format('%.0f', math.floor(now / 1000) + ARGV[22])
if ends then
  redis.call('SET', KEYS[2], head, 'PXAT', ends)
else
  redis.call('SET', KEYS[2], head, 'KEEPTTL')
end
-- Fields, totals and ends are written in as few calls as there can be: what each costs is mostly the
-- way into Redis and out.
local set, drop = {'v', ARGV[6], 's', ARGV[7],
  'l', seq .. ' ' .. lease .. ' ' .. items .. ' ' .. progressed}, {}
for field, at in ipairs({8, 9, 28, 29}) do
  local name = string.sub('twmn', field, field)
  if ARGV[at] == '' then
    if job[field == 1 and 3 or field + 4] then drop[#drop + 1] = name end
  elseif ARGV[at] ~= '=' then
    set[#set + 1] = name
    set[#set + 1] = ARGV[at]
  end
end
if ARGV[16] ~= '' then
  for _, each in ipairs({'c', ARGV[17], 'o', ARGV[18]}) do set[#set + 1] = each end
  if ARGV[19] ~= '' then redis.call('SET', KEYS[8], ARGV[19]) end
  if ARGV[20] ~= '' then redis.call('SET', KEYS[7], ARGV[20]) end
end
redis.call('HSET', hash, unpack(set))
if #drop > 0 then redis.call('HDEL', hash, unpack(drop)) end
if ARGV[21] == '-' then
  redis.call('DEL', KEYS[6])
elseif ARGV[21] ~= '' then
  redis.call('SET', KEYS[6], ARGV[21])
end
if ARGV[25] ~= '' then redis.call('RPUSH', KEYS[4], ARGV[25]) end
if ARGV[26] ~= '' then redis.call('RPUSH', KEYS[5], ARGV[26]) end
if ARGV[27] ~= '' then
  redis.call('DEL', KEYS[3])
  for at = 34 + 2 * ARGV[33], #ARGV do redis.call('RPUSH', KEYS[3], ARGV[at]) end
  local sent = redis.call('HGET', hash, 'p')
  if sent then
    local sent_steps, rest = string.match(sent, '^(%d+) (.*)$')
    local left = redis.call('LLEN', KEYS[3])
    redis.call('HSET', hash, 'p', math.min(tonumber(sent_steps), left) .. ' ' .. rest)
  end
  if redis.call('HEXISTS', hash, 'd') == 1 then
    -- What a claim's holder read is no more: so the claim ends.
    redis.call('HSET', hash, 'd', 0)
    redis.call('ZADD', KEYS[16], 0, ARGV[1])
  end
end
if ARGV[30] ~= '' and redis.call('HEXISTS', hash, 'd') == 0 then
  redis.call('HSET', hash, 'd', 0)
  redis.call('ZADD', KEYS[16], 0, ARGV[1])
end

local last = 33 + ARGV[33]
if last > 33 then
  local before, totals = redis.call('HMGET', KEYS[15], unpack(ARGV, 34, last)), {}
  for at, amount in ipairs(before) do
    totals[at * 2 - 1] = ARGV[33 + at]
    totals[at * 2] = (amount or 0) + ARGV[last + at]
  end
  redis.call('HSET', KEYS[15], unpack(totals))
end

local steps = redis.call('LLEN', KEYS[3])
if ARGV[3] ~= ARGV[7] then
  redis.call('ZREM', KEYS[9], ARGV[1])
  redis.call('ZREM', KEYS[10], ARGV[1])
  redis.call('ZADD', KEYS[11], job[5], ARGV[1])
  redis.call('ZADD', KEYS[12], job[5], ARGV[1])
end
if ARGV[7] == 'running' then
  redis.call('ZADD', KEYS[13], lease, ARGV[1])
elseif ARGV[3] == 'running' then
  redis.call('ZREM', KEYS[13], ARGV[1])
end
if ARGV[3] ~= ARGV[7] or ARGV[32] == '' then
  if ARGV[3] == 'interrupted' or ARGV[3] == 'pending' then
    redis.call('ZREM', KEYS[17], ARGV[1])
  end
end
if ARGV[32] ~= '' then redis.call('ZADD', KEYS[18], ARGV[32], ARGV[1]) end
if ARGV[22] == 'same' then
  local left = redis.call('PTTL', hash)
  if left >= 0 then
    for at = 1, 8 do redis.call('PEXPIRE', KEYS[at], left) end
  end
else
  if ARGV[23] ~= '' then
    redis.call('ZREM', KEYS[14], job[5] .. ' ' .. ARGV[23])
    if not ends then
      for at = 1, 8 do redis.call('PERSIST', KEYS[at]) end
    end
  end
  if ends then
    redis.call('ZADD', KEYS[14], ends, job[5] .. ' ' .. ARGV[24])
    redis.call('PEXPIREAT', hash, ends)
    if steps > 0 then redis.call('PEXPIREAT', KEYS[3], ends) end
    if redis.call('EXISTS', KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]) > 0 then
      for at = 4, 8 do redis.call('PEXPIREAT', KEYS[at], ends) end
    end
  end
end
return steps
