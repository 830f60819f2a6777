-- The newest entries of one shard behind a score, of several indexes at once: score, id, …
-- KEYS: indexes      ARGV: the score to begin at, how many of each
local found = {}
for _, key in ipairs(KEYS) do
  local entries =
    redis.call('ZREVRANGEBYSCORE', key, ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
  for at = 1, #entries, 2 do
    found[#found + 1] = string.format('%.0f', entries[at + 1])
    found[#found + 1] = entries[at]
  end
end
return found
