-- Removes from the indexes jobs whose time is over; Redis itself removes their keys at that moment.
-- KEYS: ends, spans, then of each entry its job's hash, its index by status and by name
-- ARGV: id, birth, entry of each
-- An entry with another birth belongs to a later job of the same id, and stays.
local removed = 0
for at = 1, #ARGV, 3 do
  local hash = at + 2
  for key = hash + 1, hash + 2 do
    local score = redis.call('ZSCORE', KEYS[key], ARGV[at])
    if score and string.format('%.0f', score) == ARGV[at + 1] then
      redis.call('ZREM', KEYS[key], ARGV[at])
    end
  end
  if redis.call('EXISTS', KEYS[hash]) == 0 then
    redis.call('ZREM', KEYS[2], ARGV[at])
  end
  removed = removed + redis.call('ZREM', KEYS[1], ARGV[at + 2])
end
return removed
