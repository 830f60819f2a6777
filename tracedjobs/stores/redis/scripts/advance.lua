-- Saves the positions of some runs of one shard whose last save is known to whoever saves them.
-- KEYS: leases, then of each job its hash
-- ARGV: lease in µs, the third that the leases are in, length of a hash's key before the id, which
--       fields are written beside 'l' (of 'c' the cursor, 'm' the meter), then of each job token,
--       'l' as that save left it, seq, items and progress, and the texts of those fields
-- Returns the end of the leases; where a job does not just go on, a list of that, and then of each
-- such job its number, and its wish where it was saved, false where it was not.
-- This is the hot path. Whoever has the token and knows 'l' wrote it last, and nothing has been
-- written since that matters to a save: who opens or completes a step writes 'l', who takes the
-- job over or rewinds it another token. So neither the order nor the open step is looked at. Where
-- something else is found, save.lua tells what it is.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ttl, words = tonumber(ARGV[1]), 4 + #ARGV[4]
local field, other = string.sub(ARGV[4], 1, 1), string.sub(ARGV[4], 2)
local ends = string.format('%.0f', now + ttl)
local lease = ' ' .. ends .. ' '
local moves = math.floor((now + ttl) * 3 / ttl) ~= tonumber(ARGV[2]) -- as in save.lua
local others = {ends}
local call, pcall = redis.call, redis.pcall
local at = 5
for key = 2, #KEYS do
  local hash = KEYS[key]
  local job = pcall('HMGET', hash, 't', 'l', 'w')
  local saves = job[1] == ARGV[at] and job[2] == ARGV[at + 1]
  if saves then
    local saved = ARGV[at + 2] .. lease .. ARGV[at + 3]
    if words == 4 then
      call('HSET', hash, 'l', saved)
    elseif words == 5 then
      call('HSET', hash, 'l', saved, field, ARGV[at + 4])
    else
      call('HSET', hash, 'l', saved, field, ARGV[at + 4], other, ARGV[at + 5])
    end
    if moves then call('ZADD', KEYS[1], ends, string.sub(hash, ARGV[3] + 1)) end
  end
  if not saves or job[3] then
    others[#others + 1] = key - 1
    others[#others + 1] = saves and job[3]
  end
  at = at + words
end
return #others == 1 and ends or others
