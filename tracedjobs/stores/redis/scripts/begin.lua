-- Begins the first run of a job if nothing has happened to it since it was submitted.
-- KEYS: hash, head, state, by status and by name while it is pending, by status and by name while it
--       runs, leases, totals, to be handed while pending
-- ARGV: 1 id, 2 what its head begins with if the name is right, 3 what the second line of a head of
--       this version begins with, 4 the third line while nothing has happened, 5 once the run has
--       begun, 6 token, 7 lease from now in µs, 8 the moment of progress, 9 upper bounds of the
--       buckets of queue_wait in seconds
-- Returns the end of the lease and the head's second line as one text; false where it was not begun.
-- All that can change is compared with what it was at first, so there are no steps, runs and controls
-- then; the state alone is a key that a submission may set.
local call = redis.call
local job = call('HMGET', KEYS[1], 'b', 's', 'v', 'l', 'c', 'o', 't', 'w', 'm', 'n', 'd', 'p')
local head = call('GET', KEYS[2])
if not head or not job[1] or job[2] ~= 'pending' or job[3] ~= '0'
  or job[4] ~= '0 0 0 -' or job[5] ~= 'null' or job[6] ~= '-' or job[7] or job[8] or job[9] or job[10] or job[11] or job[12]
  or call('EXISTS', KEYS[3]) == 1
then
  return false
end
local name_ends = string.find(head, '\n', 1, true) or 0
local first, second = string.sub(head, 1, name_ends - 1), string.sub(head, name_ends + 1, -#ARGV[4] - 2)
if string.sub(head, -#ARGV[4] - 1) ~= '\n' .. ARGV[4]
  or string.sub(first, 1, #ARGV[2]) ~= ARGV[2] or string.sub(second, 1, #ARGV[3]) ~= ARGV[3]
then
  return false
end
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local lease = string.format('%.0f', now + ARGV[7])
-- The first write is one that a full server refuses: then nothing is written at all.
call('SET', KEYS[2], first .. '\n' .. second .. '\n' .. ARGV[5])
call('HSET', KEYS[1], 'v', 1, 's', 'running', 't', ARGV[6], 'l', '0 ' .. lease .. ' 0 ' .. ARGV[8])
local wait, bucket = (now - job[1]) / 1000000, '+Inf'
for bound in string.gmatch(ARGV[9], '%S+') do
  if wait <= tonumber(bound) then
    bucket = bound
    break
  end
end
local counted = '["queue_wait_bucket",' .. first .. ',"","' .. bucket .. '"]'
local summed = '["queue_wait_sum",' .. first .. ',"",""]'
local before = call('HMGET', KEYS[9], counted, summed)
call('HSET', KEYS[9], counted, (before[1] or 0) + 1, summed, (before[2] or 0) + math.max(wait, 0))
call('ZREM', KEYS[4], ARGV[1])
call('ZREM', KEYS[5], ARGV[1])
call('ZREM', KEYS[10], ARGV[1])
call('ZADD', KEYS[6], job[1], ARGV[1])
call('ZADD', KEYS[7], job[1], ARGV[1])
call('ZADD', KEYS[8], lease, ARGV[1])
return lease .. '\n' .. second
