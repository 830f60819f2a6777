-- Ends the run of a job that is done: what change.lua does of that, which most changes of jobs are.
-- KEYS: hash, head, steps, runs, controls, state, open, cursor, by status and by name while it runs,
--       by status and by name once it is completed, leases, ends, totals, spans
-- ARGV: 1 id, 2 revision, 3 token, 4 seq, 5 the leap of seq that only a step's completion makes,
--       6 the third line of the head, 7 milliseconds to keep it ('' for ever), 8 entry of its end,
--       9 whether it owes spans from now on, 10 whether hash and head are all there is of it while
--       nothing is saved, then fields of totals, and as many texts of what is added to each
-- Returns how many steps the job has; -1 where it is not as it was read.
local call, hash = redis.call, KEYS[1]
local job = call('HMGET', hash, 'v', 's', 't', 'l', 'b', 'c', 'o', 'w', 'n')
if job[1] ~= ARGV[2] or job[2] ~= 'running' or job[3] ~= ARGV[3] then
  return -1
end
local seq, items, progressed = string.match(job[4], '^(%S+) %S+ (%S+) (%S+)$')
if ARGV[4] - seq >= tonumber(ARGV[5]) then
  -- It has completed steps that the server has lost, see complete_step.lua.
  call('HSET', hash, 'l', seq .. ' 0 ' .. items .. ' ' .. progressed)
  call('HDEL', hash, 't')
  call('ZADD', KEYS[13], 0, ARGV[1])
  return -1
end
local submitted = string.match(call('GET', KEYS[2]) or '', '^.*\n')
if not submitted then
  return -1
end
local ends = false
if ARGV[7] ~= '' then
  local time = call('TIME')
  ends = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[7])
  call('SET', KEYS[2], submitted .. ARGV[6], 'PXAT', ends)
else
  call('SET', KEYS[2], submitted .. ARGV[6])
end
-- A token of no text is none, and costs no command of its own.
local saved = ARGV[4] .. ' 0 0 ' .. progressed
if job[6] == 'null' and job[7] == '-' then
  call('HSET', hash, 'v', job[1] + 1, 's', 'completed', 't', '', 'l', saved)
else
  call('HSET', hash, 'v', job[1] + 1, 's', 'completed', 't', '', 'l', saved, 'c', 'null', 'o', '-')
end
if job[8] or job[9] then call('HDEL', hash, 'w', 'n') end
if ARGV[9] ~= '' and call('HEXISTS', hash, 'd') == 0 then
  call('HSET', hash, 'd', 0)
  call('ZADD', KEYS[16], 0, ARGV[1])
end

local last = 10 + (#ARGV - 10) / 2
if last > 10 then -- as in change.lua
  local before, totals = call('HMGET', KEYS[15], unpack(ARGV, 11, last)), {}
  for at, amount in ipairs(before) do
    totals[at * 2 - 1] = ARGV[10 + at]
    totals[at * 2] = (amount or 0) + ARGV[last + at]
  end
  call('HSET', KEYS[15], unpack(totals))
end

call('ZREM', KEYS[9], ARGV[1])
call('ZREM', KEYS[10], ARGV[1])
call('ZREM', KEYS[13], ARGV[1])
call('ZADD', KEYS[11], job[5], ARGV[1])
call('ZADD', KEYS[12], job[5], ARGV[1])
if ends then
  call('ZADD', KEYS[14], ends, job[5] .. ' ' .. ARGV[8])
  call('PEXPIREAT', hash, ends)
end
if ARGV[10] ~= '' and seq == '0' then
  return 0
end
local steps = call('LLEN', KEYS[3])
if ends and steps > 0 then call('PEXPIREAT', KEYS[3], ends) end
if ends and call('EXISTS', KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]) > 0 then
  for at = 4, 8 do call('PEXPIREAT', KEYS[at], ends) end
end
return steps
